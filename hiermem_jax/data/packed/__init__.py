"""Packed datasets: their files, how windows become sequences, and the batches that training reads.

packing.py        `pack`: windows of one leaf -> sequences with segment ids
format.py         `Manifest`, records and shards: the files of a packed dataset, and their writing
reading.py        `PackedDataset`: reads sequences by their numbers
decomposition.py  `DecomposedDataset`, `DecomposedBatches`: sequences of several lengths, for anchors; `open_dataset`
selection.py      `below_cluster`, `HeldOutBatches`: some sequences of a dataset
batches.py        `to_batch` (what a batch is), `Batches` (a stream of batches), `in_order` (one pass)
"""
