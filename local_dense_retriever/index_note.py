"""The note beside an index, `<index>.json`: what it was made from, so that files of another corpus are refused.

An index without one (wiki-18's, or your own) is judged by its number of rows and of dimensions only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.downloaded import partial
from local_dense_retriever.errors import InputError


class IndexNote(NamedTuple):
    corpus_digest: str
    rows: int
    dim: int  # 0 for BM25
    retriever_name: str  # "" for BM25
    retriever_model: str
    index_type: str  # FAISS factory string, or BM25


def note_path(index_path: Path) -> Path:
    return index_path.with_name(index_path.name + ".json")


def write_note(index_path: Path, note: IndexNote) -> None:
    path = note_path(index_path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(note._asdict(), indent=1) + "\n")
    os.replace(temporary, path)


def read_note(index_path: Path) -> IndexNote | None:
    """None if there is none; InputError if it cannot be read."""
    path = note_path(index_path)
    if not path.exists():
        return None
    try:
        return IndexNote(**json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it, or build the index again") from error


def publish(finished: Path, index_path: Path, note: IndexNote | None) -> None:
    """Gives a finished file its name. The old note goes first: no moment has an index with another one's note."""
    note_path(index_path).unlink(missing_ok=True)
    os.replace(finished, index_path)
    if note:
        write_note(index_path, note)


def check_belongs(index_path: Path, corpus: Corpus, retriever_name: str | None) -> None:
    """Raises InputError if an index was built from another corpus or with another family of encoders, by its note.

    `retriever_name` None is an index without an encoder.
    """
    note = read_note(index_path)
    if note is None:
        return
    if note.corpus_digest != corpus.digest and partial(index_path).exists():
        raise InputError(
            f"the index {index_path} does not belong to {corpus.path}, and {partial(index_path)} is left of an "
            "interrupted build_index.py: run the same command again"
        )
    if note.corpus_digest != corpus.digest:
        raise InputError(
            f"the index {index_path} was built from {note.rows} passages of another text than the {len(corpus)} in "
            f"{corpus.path}: build it again, or give the corpus it was built from"
        )
    if retriever_name is not None and note.retriever_name != retriever_name:
        raise InputError(
            f"the index {index_path} was built with --retriever_name {note.retriever_name} and this is "
            f"{retriever_name}: give the one it was built with"
        )
