"""The Beam pipelines: `cluster_corpus` learns the tree of a corpus, `prepare` writes its packed dataset.

config.py   `ReadConfig`, `PackConfig`: what users bind; `TreeConfig` is in retrieval/build.py
runner.py   `BeamConfig`: where pipelines run
keys.py     keys of windows, and the hashes that give every random order
reading.py  one part of a source as batches of windows; counts of what was read
steps.py    what the pipelines share
embed.py    embeds the windows of a part, and keeps the embeddings
cluster.py  `cluster_corpus`: embeds the corpus, learns the tree level by level
route.py    first half of `prepare`: finds the leaf of each window
pack.py     second half of `prepare`: packs, shuffles, writes
prepare.py  `prepare`: both halves, and the manifest
"""
