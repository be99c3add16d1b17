"""Queries to passages: a searcher and a corpus that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from local_dense_retriever.audit_note import read_audits, sentence
from local_dense_retriever.corpus import Corpus, Passage
from local_dense_retriever.errors import InputError
from local_dense_retriever.searcher import About, Searcher


class Hit(NamedTuple):
    passage: Passage
    score: float  # larger is better: inner product of unit vectors, BM25, or the sum of reciprocal ranks


class Retriever:
    """Finds the passages nearest to a query. Call it from one thread at a time."""

    def __init__(self, searcher: Searcher, corpus: Corpus) -> None:
        """Raises InputError if the index was not made from a corpus of this size."""
        if len(searcher) != len(corpus):
            raise InputError(
                f"the index {searcher.path} has {len(searcher)} rows but the corpus {corpus.path} has {len(corpus)} "
                "passages: build the index again from this corpus, or give the corpus it was built from"
            )
        self._searcher = searcher
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """For each query its nearest passages, best first: at most topk of them."""
        found = self._searcher.search(queries, topk)
        distinct = sorted(set(found.rows[found.rows >= 0].tolist()))
        passages = dict(zip(distinct, self._corpus.passages(distinct), strict=True))
        return [
            [Hit(passages[row], score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]

    def describe(self) -> About:
        """The index: backend, rows, dimension, bytes; its encoder, and what audit.py found, if there is any."""
        about = self._searcher.describe()
        if audits := read_audits(self._corpus):
            about["audit"] = "\n".join(map(sentence, audits))
        return about
