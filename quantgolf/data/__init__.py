"""Data: text and its tokenizer become one stream of tokens that knows its documents and their bytes."""

from quantgolf.data.batches import calibration_batches
from quantgolf.data.corpus import Corpus, Counted, corpus_from_texts
from quantgolf.data.documents import Documents
from quantgolf.data.fit import refuse_misfit
from quantgolf.data.open import open_tokenizer
from quantgolf.data.read import read_corpus
from quantgolf.data.sample import sample_corpus
from quantgolf.data.tokenizer import Tokenizer
from quantgolf.data.windows import Context, Window, windows

__all__ = [
    "Context",
    "Corpus",
    "Counted",
    "Documents",
    "Tokenizer",
    "Window",
    "calibration_batches",
    "corpus_from_texts",
    "open_tokenizer",
    "read_corpus",
    "refuse_misfit",
    "sample_corpus",
    "windows",
]
