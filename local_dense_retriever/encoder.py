"""Encodes texts as vectors: three encoder families, each with the prefixes and pooling of its training."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.errors import InputError

MAX_QUERY_TOKENS = 256
MAX_PASSAGE_TOKENS = 256  # a wiki-18 passage is 100 words
ONNX_FILES = ("onnx/model.onnx", "tokenizer.json", "config.json")  # of a model that onnxruntime can run


class EncoderStyle(NamedTuple):
    query_prefix: str
    passage_prefix: str
    pooling: Literal["mean", "cls"]  # mean of the token states, or the first one


STYLES = {
    "e5": EncoderStyle("query: ", "passage: ", "mean"),
    "bge": EncoderStyle("Represent this sentence for searching relevant passages: ", "", "cls"),
    "minilm": EncoderStyle("", "", "mean"),
}


class Encoder(ABC):
    """Encodes in batches of texts of similar length. Call it from one thread."""

    dim: int  # D, the size of a vector
    usual_batch_size: ClassVar[int]  # texts

    def __init__(self, name: str, batch_size: int | None = None) -> None:
        """`name` is a key of STYLES; raises InputError if it is not."""
        if name not in STYLES:
            raise InputError(f"--retriever_name is {name!r}: the known encoders are {', '.join(STYLES)}")
        self.name = name
        self.style = STYLES[name]
        self._batch_size = batch_size or self.usual_batch_size

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """-> (B, D) float32, rows L2-normalised, in the order of the queries."""
        return self._encode([self.style.query_prefix + query for query in queries], MAX_QUERY_TOKENS)

    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]:
        """-> (B, D) float32, rows L2-normalised, in the order of the passages."""
        return self._encode([self.style.passage_prefix + passage for passage in passages], MAX_PASSAGE_TOKENS)

    def _encode(self, texts: list[str], max_tokens: int) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for rows in batches(list(map(len, texts)), self._batch_size):
            vectors[rows] = self._encode_batch([texts[i] for i in rows], max_tokens)
        return vectors

    @abstractmethod
    def _encode_batch(self, texts: list[str], max_tokens: int) -> NDArray[np.float32]:
        """-> (B, D) float32, rows L2-normalised. Longer texts are cut to `max_tokens`."""


def pool(states: Any, mask: Any, pooling: str) -> Any:
    """(B, T, D) token states and their (B, T) mask, of numpy or torch -> (B, D): their sum or the first one, unscaled.

    The sum has the direction of the mean. The first state is that of the text with right padding only, as in BERT.
    """
    return states[:, 0] if pooling == "cls" else (states * mask[:, :, None]).sum(1)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """The texts of these lengths by their positions, `size` at a time: similar lengths together, for little padding.

    The longest come first, so that a batch too large for memory fails at the start and not at the end.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return (by_length[start : start + size] for start in range(0, len(lengths), size))
