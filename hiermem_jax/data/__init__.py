"""From text to batches: sources, tokenizers, windows, packing, the packed dataset, SeqIO tasks.

A corpus is prepared by Beam pipelines: each document is cut into windows of at most 2048
tokens, each window is routed to its leaf in the cluster tree, windows of one leaf are
packed into fixed-length sequences, and the sequences are shuffled and written with a
manifest (paper, sections 2.1, A.2 and Appendix C). Training then reads batches by step
number alone, so a resumed run sees what an uninterrupted one would have seen.

Where text comes from
  sources.py         what a source is; source_files.py and source_tfds.py are the sources
  world*.py          the synthetic world: documents and probes with known facts
  tokenizer.py       `load_tokenizer`, `train_sentencepiece`
  windows.py         documents -> windows, the unit of clustering and packing
  reading.py         one part of a source as batches of windows, and the count of what was in it
Pipelines
  runner.py          `BeamConfig`: where pipelines run
  cluster_corpus.py  embed the windows of a corpus, grow its tree
  prepare.py         `prepare` (source -> packed dataset): route_corpus.py, then pack_corpus.py
  keys.py, files.py, steps.py   hashes for orders, files that appear whole, what the pipelines share
What training reads
  packing.py         windows of one leaf -> sequences with segment ids
  packed.py          `PackedDataset`: ArrayRecord shards and their manifest
  decomposition.py   datasets of several lengths and their batches, for anchors
  batches.py         `to_batch` (the batch contract), `Batches` (a stream addressed by step), `in_order` (one pass)
For SeqIO's users
  seqio_tasks.py     the same data as SeqIO tasks and a feature converter
  vocabulary.py      our tokenizers as SeqIO vocabularies
For evaluation
  tasks/             public question sets in their original formats, as SeqIO tasks, and their metrics
  mentions.py        how often names occur in a corpus

This is the only room that may import TensorFlow and Beam, and only when what needs them is used: a machine without
them can train from prepared files.
"""
