"""Interfaces that find rows of the corpus: a searcher takes texts, a vector index takes vectors.

    Searcher        texts   -> rows      DenseSearcher and HybridSearcher (here), Bm25Searcher
    VectorIndex     vectors -> rows      FaissIndex, ExactIndex, MilvusIndex

Row i is line i of the corpus. Nothing here is thread-safe.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.corpus import Passage
from local_dense_retriever.encoder import Encoder
from local_dense_retriever.errors import InputError

RANK_OFFSET = 60
DEPTH = 100  # ranks of each searcher that count


class UnavailableError(ConnectionError):
    """The service that holds the index does not answer any query; the message is for the log."""


class About(NamedTuple):
    """An index, for messages, /ready and /metrics."""

    path: str | Path  # the file, folder or collection that it was loaded from
    backend: str
    rows: int
    dimension: int  # 0 for BM25
    bytes: int
    encoder: str | None = None  # None for BM25


class Found(NamedTuple):
    """The k nearest rows of B queries, best first."""

    rows: NDArray[np.int64]  # (B, k), -1 = none
    scores: NDArray[np.float32]  # (B, k), larger is better; meaningless where the row is -1

    @classmethod
    def nothing(cls, queries: int, k: int) -> Self:
        """A result without any row, to be filled."""
        return cls(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))


class Hit(NamedTuple):
    passage: Passage
    score: float  # larger is better: inner product of unit vectors, BM25, sum of reciprocal ranks, or reranked


class Searcher(Protocol):
    about: About

    def search(self, queries: Sequence[str], topk: int) -> Found: ...


class VectorIndex(Protocol):
    about: About

    def search(self, vectors: NDArray[np.float32], k: int) -> Found: ...  # (B, D) float32


class DenseSearcher:
    def __init__(self, encoder: Encoder, index: VectorIndex) -> None:
        """Raises InputError if the index's vectors and the encoder's have different dimensions."""
        about = index.about
        if about.dimension != encoder.dim:
            raise InputError(
                f"the index {about.path} has vectors of dimension {about.dimension}, but the encoder makes "
                f"{encoder.dim}: give the --retriever_name and --retriever_model that the index was built with"
            )
        self.about = about._replace(encoder=encoder.name)
        self._encoder = encoder
        self._index = index

    def search(self, queries: Sequence[str], topk: int) -> Found:
        return self._index.search(self._encoder.encode_queries(queries), topk)


class HybridSearcher:
    """Two searchers over the same corpus, by reciprocal rank fusion: a row's score is the sum of 1 / (60 + its rank).

    Only ranks count, so inner products and BM25 scores need no common scale (Cormack, Clarke, Büttcher, SIGIR 2009).
    """

    def __init__(self, first: Searcher, second: Searcher) -> None:
        """Raises InputError if they have different numbers of rows."""
        one, other = first.about, second.about
        if one.rows != other.rows:
            raise InputError(
                f"{one.path} has {one.rows} rows but {other.path} has {other.rows}: build both from one corpus"
            )
        backend = f"hybrid of {one.backend} and {other.backend}"
        self.about = one._replace(backend=backend, bytes=one.bytes + other.bytes)
        self._searchers = (first, second)

    def search(self, queries: Sequence[str], topk: int) -> Found:
        depth = max(DEPTH, topk)
        lists = [searcher.search(queries, depth).rows.tolist() for searcher in self._searchers]
        found = Found.nothing(len(queries), topk)
        for number, rankings in enumerate(zip(*lists, strict=True)):
            for position, (row, score) in enumerate(fuse(rankings)[:topk]):
                found.rows[number, position], found.scores[number, position] = row, score
        return found


def fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Rows and their fused scores, best first; ties go to the smaller row. -1 is no row."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            if row >= 0:
                scores[row] = scores.get(row, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def exact_scores(
    stored: NDArray[np.float32], vectors: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(N, D) stored, (B, D) queries, (B, C) rows -> (B, C) inner products, -inf for NaN. Row -1 reads the last one."""
    scores = np.stack([stored[own] @ query for own, query in zip(rows, vectors, strict=True)])
    return np.where(np.isfinite(scores), scores, np.float32(-np.inf))


def best(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Found:
    """The k best of (B, C) rows; ties go to the smaller row, and a score of -inf becomes row -1."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Found(np.where(np.isfinite(scores), rows, -1), scores)
