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
About = dict[str, str | int]  # describes an index for logs and /metrics: backend, rows, dimension, bytes, encoder


class UnavailableError(ConnectionError):
    """The service that holds the index does not answer any query; the message is for the log."""


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
    @property
    def path(self) -> str | Path:
        """The file, folder or URL it was loaded from, for messages."""

    def __len__(self) -> int: ...
    def search(self, queries: Sequence[str], topk: int) -> Found: ...
    def describe(self) -> About: ...


class VectorIndex(Protocol):
    dim: int

    @property
    def path(self) -> str | Path: ...
    def __len__(self) -> int: ...
    def search(self, vectors: NDArray[np.float32], k: int) -> Found: ...  # (B, dim) float32
    def describe(self) -> About: ...


class DenseSearcher:
    def __init__(self, encoder: Encoder, index: VectorIndex) -> None:
        """Raises InputError if the index's vectors and the encoder's have different dimensions."""
        if index.dim != encoder.dim:
            raise InputError(
                f"the index {index.path} has vectors of dimension {index.dim}, but the encoder makes {encoder.dim}: "
                "give the --retriever_name and --retriever_model that the index was built with"
            )
        self.path = index.path
        self._encoder = encoder
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Sequence[str], topk: int) -> Found:
        return self._index.search(self._encoder.encode_queries(queries), topk)

    def describe(self) -> About:
        return {**self._index.describe(), "encoder": self._encoder.name}


class HybridSearcher:
    """Two searchers over the same corpus, by reciprocal rank fusion: a row's score is the sum of 1 / (60 + its rank).

    Only ranks count, so inner products and BM25 scores need no common scale (Cormack, Clarke, Büttcher, SIGIR 2009).
    """

    def __init__(self, first: Searcher, second: Searcher) -> None:
        """Raises InputError if they have different numbers of rows."""
        if len(first) != len(second):
            raise InputError(
                f"{first.path} has {len(first)} rows but {second.path} has {len(second)}: build both from one corpus"
            )
        self.path = first.path
        self._searchers = (first, second)

    def __len__(self) -> int:
        return len(self._searchers[0])

    def search(self, queries: Sequence[str], topk: int) -> Found:
        depth = max(DEPTH, topk)
        lists = [searcher.search(queries, depth).rows.tolist() for searcher in self._searchers]
        found = Found.nothing(len(queries), topk)
        for number, rankings in enumerate(zip(*lists, strict=True)):
            for position, (row, score) in enumerate(fuse(rankings)[:topk]):
                found.rows[number, position], found.scores[number, position] = row, score
        return found

    def describe(self) -> About:
        first, second = (searcher.describe() for searcher in self._searchers)
        return {
            "backend": f"hybrid of {first['backend']} and {second['backend']}",
            "rows": len(self),
            "dimension": first["dimension"],
            "bytes": int(first["bytes"]) + int(second["bytes"]),
            "encoder": first["encoder"],
        }


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
    products: Sequence[NDArray] = [stored[own] @ query for own, query in zip(rows, vectors, strict=True)]
    scores = np.stack(products).astype(np.float32, copy=False)
    return np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32, copy=False)


def best(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Found:
    """The k best of (B, C) rows; ties go to the smaller row, and a score of -inf becomes row -1."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Found(np.where(np.isfinite(scores), rows, -1), scores)
