"""Queries to passages: an encoder, an index and a corpus that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from local_dense_retriever.corpus import Corpus, Passage
from local_dense_retriever.errors import InputError

if TYPE_CHECKING:  # both import large libraries, which `--help` need not wait for
    from local_dense_retriever.encoder import TextEncoder
    from local_dense_retriever.index import PassageIndex


class Hit(NamedTuple):
    passage: Passage
    score: float  # inner product of two unit vectors, -1 … 1; larger is nearer


class Retriever:
    """Finds the passages nearest to a query. Safe to call from several threads."""

    def __init__(self, encoder: TextEncoder, index: PassageIndex, corpus: Corpus) -> None:
        """Raises InputError if the index was not made from this corpus or not with an encoder of this size."""
        if len(index) != len(corpus):
            raise InputError(
                f"the index {index.path} has {len(index)} rows but the corpus {corpus.path} has {len(corpus)} passages"
                ": build the index again from this corpus, or give the corpus it was built from"
            )
        if index.dim != encoder.dim:
            raise InputError(
                f"the index {index.path} has vectors of {index.dim} numbers but the encoder makes {encoder.dim}: "
                "give the --retriever_name and --retriever_model that the index was built with"
            )
        self._encoder = encoder
        self._index = index
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    def describe(self) -> dict[str, str | int]:
        """What is served, for /ready and /metrics."""
        size = self._index.path.stat().st_size
        return {"rows": len(self), "dimension": self._index.dim, "backend": "faiss", "bytes": size}

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """For each query its nearest passages, best first: topk of them, or all if the corpus has fewer."""
        vectors = self._encoder.encode_queries(queries)  # (B, D)
        scores, rows = self._index.search(vectors, topk)  # (B, k), -1 = none
        distinct = sorted(set(rows[rows >= 0].tolist()))
        passages = dict(zip(distinct, self._corpus.passages(distinct), strict=True))
        return [
            [Hit(passages[row], score) for row, score in zip(*found, strict=True) if row >= 0]
            for found in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
