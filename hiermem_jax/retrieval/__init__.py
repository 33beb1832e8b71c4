"""From a text to its leaf in the cluster tree (paper, Section 2.1 and Appendix C).

A sentence encoder turns a text into a unit vector. Balanced k-means makes a tree of nested
clusters of the vectors of the training corpus. The leaf of a text in that tree decides which
memory blocks the text fetches. Other rooms get `Retriever` (texts -> int32 leaves) from here, its
parts, and functions that build, save and load them. This room knows nothing of models, or of how
corpora are stored.

  encoders/          texts -> float32 unit vectors: `LsaEncoder`, `SentenceTransformer`, and a registry for others
  kmeans.py          balanced mini-batch k-means, which splits one node
  tree.py            `ClusterTree`: centroids, the greedy descent, the ancestors of a leaf
  build.py           `TreeConfig`, `build_tree`, `split_node`: how a tree is learned
  search.py          other leaves than the greedy descent finds: without some clusters, or the k-th nearest
  retriever.py       `Retriever`, an encoder and its tree; `save_retriever`, `load_retriever`
  document_index.py  `DocumentIndex`, the nearest document in a cluster, for the RAG baseline
  storage.py         arrays and a JSON object on disk, with a checksum
"""
