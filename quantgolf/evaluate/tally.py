"""What happened on each document: sums that are added to, so that nothing is kept of a token."""

import math

import numpy as np
from numpy.typing import NDArray

from quantgolf.data import Context, Corpus
from quantgolf.types import EvalResult


class Tally:
    """Sums of one model over the documents of a text; a token that nothing predicts is booked at the start.

    In dense context a BOS belongs to the document before it, and only the stream's first token is not predicted; in
    isolated context every document's first token is not. Without BOS such a token is text, and costs ln V.
    """

    def __init__(self, text: Corpus, context: Context, compared: bool) -> None:
        self.text, self.compared = text, compared
        self.document: NDArray[np.integer] = text.document.numpy()
        self.ends_another = context == "dense" and text.bos is not None
        documents = len(text.bytes)
        self.nats, self.kl = np.zeros(documents), np.zeros(documents)
        self.tokens, self.agree = np.zeros(documents, dtype=np.int64), np.zeros(documents, dtype=np.int64)
        if text.bos is None:
            first = self.document[:1] if context == "dense" else np.flatnonzero(text.lengths)
            self.nats[first] = math.log(text.vocab_size)
            self.tokens[first] = self.agree[first] = 1

    def add(
        self, where: NDArray[np.int64], loss: NDArray[np.float64], kl: NDArray[np.float64], same: NDArray[np.bool_]
    ) -> None:
        """Books tokens at positions `where` of the stream, all above 0: their loss and KL in nats, and whether the
        likeliest token is the reference's."""
        owner = self.document[where].astype(np.int64)
        if self.ends_another:
            owner = np.maximum(0, owner - (owner != self.document[where - 1]))
        for total, values in ((self.nats, loss), (self.kl, kl), (self.tokens, 1), (self.agree, same)):
            np.add.at(total, owner, values)

    def result(self) -> EvalResult:
        """The sums as they are now."""
        return EvalResult(
            nats=self.nats,
            bytes=self.text.bytes,
            tokens=self.tokens,
            kl=self.kl if self.compared else None,
            unknown=self.text.unknown,
            agree=self.agree if self.compared else None,
        )
