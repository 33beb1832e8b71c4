"""From text to tokens.

tokenizer.py   `Tokenizer`, `load_tokenizer`, `train_sentencepiece`
vocabulary.py  a tokenizer as a SeqIO vocabulary
pairs.py       `encode_pairs`: a context and its continuation, for scoring
windows.py     `windows_of`: documents -> windows, the unit of clustering and of packing
mentions.py    `count_mentions`: how often names occur in a corpus
"""
