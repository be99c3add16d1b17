"""Finds passages for queries with a searcher and the corpus it was built from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.notes import read_audits, sentence
from local_dense_retriever.searcher import Hit, Searcher

if TYPE_CHECKING:  # imports torch
    from local_dense_retriever.reranker import Reranker


class Retriever:
    """Finds the passages nearest to a query. Call it from one thread at a time."""

    def __init__(self, searcher: Searcher, corpus: Corpus, reranker: Reranker | None = None) -> None:
        """Raises InputError if the index was not made from a corpus of this size."""
        about = searcher.about
        if about.rows != len(corpus):
            raise InputError(
                f"the index {about.path} has {about.rows} rows but the corpus {corpus.path} has {len(corpus)} "
                "passages: build the index again from this corpus, or give the corpus it was built from"
            )
        self._searcher = searcher
        self._corpus = corpus
        self._reranker = reranker

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """For each query its nearest passages, best first, at most topk. Raises UnavailableError like its index."""
        if self._reranker is None:
            return self._find(queries, topk)
        found = self._find(queries, max(topk, self._reranker.depth))
        return [hits[:topk] for hits in self._reranker.rerank(queries, found)]

    def _find(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        found = self._searcher.search(queries, topk)
        distinct = sorted(set(found.rows[found.rows >= 0].tolist()))
        passages = dict(zip(distinct, self._corpus.passages(distinct), strict=True))
        return [
            [Hit(passages[row], score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    def describe(self) -> dict[str, str | int]:
        """The index's backend, rows, dimension, bytes, encoder and reranker, and the corpus's audit if there is one."""
        about = {name: value for name, value in self._searcher.about._asdict().items() if value is not None}
        del about["path"]
        if self._reranker is not None:
            about["reranker"] = self._reranker.name
        if audits := read_audits(self._corpus):
            about["audit"] = "\n".join(map(sentence, audits))
        return about
