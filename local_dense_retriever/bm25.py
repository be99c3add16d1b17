"""BM25 by bm25s: words instead of vectors, no encoder, no GPU. The index is a folder."""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np

from local_dense_retriever.errors import InputError
from local_dense_retriever.files import partial
from local_dense_retriever.searcher import About, Found

PARAMS_FILE = "params.index.json"  # written by bm25s
OWN_FILE = re.compile(r"(params|vocab|(data|indices|indptr)\.csc|nonoccurrence_array)\.index\.(json|npy)")


class Bm25Searcher:
    def __init__(self, path: str | Path) -> None:
        """Raises InputError if the folder is missing or not a BM25 index."""
        path = Path(path)
        if not (path / PARAMS_FILE).is_file():
            raise InputError(
                f"{path} is not the folder of a BM25 index: make one with build_index.py --index_type BM25"
            )
        try:
            self._bm25 = bm25s.BM25.load(path, mmap=True, show_progress=False)
            rows = int(self._bm25.scores["num_docs"])
            self._words: dict[str, int] = self._bm25.vocab_dict
        except Exception as error:  # whichever of its files is damaged: ValueError, KeyError, OSError, …
            raise InputError(f"the BM25 index {path} cannot be read ({error}): build it again") from error
        self.about = About(path, "bm25", rows, 0, sum(file.stat().st_size for file in path.iterdir()))

    def search(self, queries: Sequence[str], topk: int) -> Found:
        """Finds only rows that share a word with the query; missing hits have row -1."""
        found, top = Found.nothing(len(queries), topk), min(topk, self.about.rows)
        # Lower-case words of two letters or more, without the commonest English ones.
        tokenized = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)
        for number, words in enumerate(tokenized):
            if known := [self._words[word] for word in words if word in self._words]:
                found.rows[number, :top], found.scores[number, :top] = self._best(known, top)
        return found

    def _best(self, words: list[int], top: int) -> Found:
        """(top,) each."""
        all_scores = self._bm25.get_scores_from_ids(words)  # (N,)
        least = np.partition(all_scores, -top)[-top]
        best = np.flatnonzero(all_scores >= least)  # all ties for the last position, which the row number breaks
        best = best[np.lexsort((best, -all_scores[best]))][:top]  # equal scores in the corpus's order
        scores = all_scores[best].astype(np.float32)
        return Found(np.where(scores > 0, best, -1), scores)


def build_bm25(texts: Iterable[str], path: Path) -> None:
    """Writes a BM25 index's folder as a whole, but not over other files (InputError). All words must fit in memory."""
    unfinished = partial(path)
    check_replaceable(path)
    check_replaceable(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), show_progress=True), show_progress=True)
    index.save(unfinished, show_progress=False)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(unfinished, path)


def check_replaceable(path: Path) -> None:
    """Raises InputError if `path` exists and holds anything that bm25s did not write."""
    if path.exists() and not (path.is_dir() and all(OWN_FILE.fullmatch(file.name) for file in path.iterdir())):
        raise InputError(f"{path} exists and is not a BM25 index: remove it yourself, or give another --index_path")
