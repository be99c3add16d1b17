"""Merges two searchers' results by reciprocal rank fusion: a row's score is the sum of 1 / (60 + its rank) over both.

Only ranks count, so that inner products and BM25 scores need no common scale (Cormack, Clarke, Büttcher, SIGIR 2009).
"""

from collections.abc import Sequence

import numpy as np

from local_dense_retriever.errors import InputError
from local_dense_retriever.searcher import About, Found, Searcher

RANK_OFFSET = 60
DEPTH = 100  # ranks of each searcher that count


class HybridSearcher:
    """The fusion of two searchers over the same corpus."""

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
        rows = np.full((len(queries), topk), -1, np.int64)
        scores = np.full((len(queries), topk), -np.inf, np.float32)
        for number, rankings in enumerate(zip(*lists, strict=True)):
            for position, (row, score) in enumerate(fuse(rankings)[:topk]):
                rows[number, position], scores[number, position] = row, score
        return Found(rows, scores)

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
