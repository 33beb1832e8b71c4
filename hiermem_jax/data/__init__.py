"""From text to batches: sources, tokenizers, the Beam pipelines, the packed dataset, SeqIO tasks.

A corpus is prepared once. Each document is cut into windows of at most 2048 tokens, each window is routed to its leaf
in the cluster tree, the windows of one leaf are packed into fixed-length sequences, and the sequences are shuffled and
written (paper, Section 2.1, Appendices A.2 and C). Training reads batches by step number alone, so a resumed run sees
the same batches as an uninterrupted one.

Rooms, in the order of the flow:

  sources/   where records come from: files, TFDS datasets, the synthetic world; `Source` is their base class
  world/     the synthetic world: documents and probes about invented entities, whose frequencies are known
  text/      tokenizers, windows, and how often names occur
  corpus/    the Beam pipelines: `cluster_corpus` (corpus -> tree) and `prepare` (corpus -> packed dataset)
  packed/    the packed dataset: its files, its reading, and the batches that training takes

For users of SeqIO, and for evaluation:

  seqio_tasks.py   packed datasets and raw text as SeqIO tasks, and a feature converter
  tasks/           public question sets in their original formats, as SeqIO tasks, and their metrics

This is the only room that may import TensorFlow and Beam. It does so only where they are used: a machine without them
can train from prepared files.
"""
