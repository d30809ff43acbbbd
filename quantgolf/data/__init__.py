"""Data: text and its tokenizer become one stream of tokens that knows its documents and their bytes."""

from quantgolf.data.corpus import Corpus, corpus_from_texts, read_corpus
from quantgolf.data.fit import refuse_misfit
from quantgolf.data.tokenizer import Tokenizer
from quantgolf.data.windows import Window, windows

__all__ = ["Corpus", "Tokenizer", "Window", "corpus_from_texts", "read_corpus", "refuse_misfit", "windows"]
