"""A compressed index whose candidates are rescored with the full vectors of a flat file on disk.

With a few bytes per vector in memory its results are close to exact search; only candidates are read from disk.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.errors import InputError
from local_dense_retriever.flat_file import FlatFile
from local_dense_retriever.searcher import About, Found, VectorIndex

FEWEST_CANDIDATES = 100
CANDIDATES_PER_RESULT = 10


class RescoredIndex:
    """A vector index whose results are scored again in float32."""

    def __init__(self, index: VectorIndex, flat: FlatFile) -> None:
        """Raises InputError if the two have different shapes."""
        if (len(index), index.dim) != (flat.rows, flat.dim):
            raise InputError(
                f"{index.path} has {len(index)} rows of {index.dim} numbers and {flat.path} {flat.rows} of {flat.dim}: "
                "give the flat index that it was made from as --rescore_path"
            )
        self.path = index.path
        self.dim = index.dim
        self._index = index
        self._vectors = flat.vectors()

    def __len__(self) -> int:
        return len(self._index)

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        """(B, D) float32 queries -> the (B, k) best of the index's candidates; -1 fills missing ones."""
        proposed = self._index.search(vectors, max(FEWEST_CANDIDATES, CANDIDATES_PER_RESULT * k)).rows
        scores = exact_scores(self._vectors, vectors, proposed)
        scores[proposed < 0] = -np.inf
        return best(proposed, scores, k)

    def describe(self) -> About:
        about = self._index.describe()
        return {**about, "backend": f"{about['backend']}, rescored"}


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
