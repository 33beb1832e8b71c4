"""From text to batches: sources, tokenizers, windows, packing, the packed dataset, SeqIO tasks.

A corpus is read once by `prepare`: each document is cut into windows of at most 2048
tokens, each window is routed to its leaf in the cluster tree, windows of one leaf are
packed into fixed-length sequences, and the sequences are shuffled and written with a
manifest (paper, sections 2.1, A.2 and Appendix C). Training then reads batches by step
number alone, so a resumed run sees what an uninterrupted one would have seen.

  tokenizer.py    `load_tokenizer`, `train_sentencepiece`
  windows.py      documents -> windows, the unit of clustering and packing
  packing.py      windows of one leaf -> sequences with segment ids
  packed.py       `write_packed`, `PackedDataset`: ArrayRecord shards and their manifest
  batches.py      `to_batch` (the batch contract), `Batches` (a stream addressed by step), `in_order` (one pass)
  prepare.py      `prepare` (source -> packed dataset), `sample_windows` (text for the cluster verb)
  seqio_tasks.py  the same data as SeqIO tasks and a feature converter
  sources.py      where documents and probes come from: anything with `records()`
  world*.py       the synthetic world: documents and probes with known facts

This is the only room that may import TensorFlow, and only `seqio_tasks` and `world_tfds` do so when they are
imported: a machine without TensorFlow can train from prepared files.
"""
