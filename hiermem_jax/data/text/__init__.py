"""From text to tokens: tokenizers, the same as SeqIO vocabularies, windows, and how often names occur."""
