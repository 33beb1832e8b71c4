"""From text to a path in the cluster tree (paper, section 2.1 and Appendix C).

A sentence encoder turns a text into a unit vector, balanced k-means grows a tree of
nested clusters over the vectors of the training corpus, and a text's leaf in that tree
names the memory blocks it fetches. The room hands out `Retriever` (texts -> int32 leaf
ids), the parts it is made of, and the means to build, save and load them. It knows
nothing of models or of how corpora are stored.

  encoders/    texts -> float32 unit vectors; `LsaEncoder` is fitted on the corpus, `SentenceTransformer` has weights
  kmeans.py    one node's split: balanced mini-batch k-means
  tree.py      `ClusterTree`, `split_node`, `build_tree`, the greedy descent and the ancestors of a leaf
  search.py    other leaves than the greedy descent finds: with clusters excluded, or the k-th nearest
  retriever.py both together: `Retriever`, `save_retriever`, `load_retriever`
  storage.py   arrays and their description on disk, checked when read
"""
