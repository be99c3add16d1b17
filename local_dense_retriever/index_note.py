"""The note beside an index, `<index>.json`, records its source, so that an index of another corpus is refused.

An index without a note (wiki-18's, or your own) is checked only for its numbers of rows and dimensions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.files import beside, partial, write_json


class IndexNote(NamedTuple):
    corpus_digest: str
    rows: int
    dim: int  # 0 for BM25
    retriever_name: str  # "" for BM25
    retriever_model: str
    index_type: str  # FAISS factory string, or BM25

    def differences(self, other: IndexNote) -> str:
        """The fields that differ: "rows and dim"."""
        fields = zip(self._fields, self, other, strict=True)
        return " and ".join(name.replace("_", " ") for name, mine, its in fields if mine != its)


def note_path(index_path: Path) -> Path:
    return beside(index_path, ".json")


def write_note(index_path: Path, note: IndexNote) -> None:
    write_json(note_path(index_path), note._asdict())


def read_note(index_path: Path) -> IndexNote | None:
    """The index's note; None if it has none. Raises InputError if it cannot be read."""
    path = note_path(index_path)
    if not path.exists():
        return None
    try:
        return IndexNote(**json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove it, or build the index again") from error


def publish(finished: Path, index_path: Path, note: IndexNote | None) -> None:
    """Renames a finished file. The old note is removed first, so that no index ever has another one's note."""
    note_path(index_path).unlink(missing_ok=True)
    os.replace(finished, index_path)
    if note:
        write_note(index_path, note)


def check_belongs(index_path: Path, corpus: Corpus, retriever_name: str | None) -> None:
    """Raises InputError if the index's note names another corpus or another encoder family.

    `retriever_name` is None for an index without an encoder.
    """
    note = read_note(index_path)
    if note is None:
        return
    if note.corpus_digest != corpus.digest and partial(index_path).exists():
        raise InputError(
            f"the index {index_path} does not belong to {corpus.path}, and {partial(index_path)} is left over from "
            "an interrupted build_index.py: run the same command again"
        )
    check_note(index_path, note, corpus, retriever_name)


def check_note(index_path: str | Path, note: IndexNote, corpus: Corpus, retriever_name: str | None) -> None:
    """Like check_belongs; empty fields of the note are not checked."""
    if note.corpus_digest and note.corpus_digest != corpus.digest:
        raise InputError(
            f"the index {index_path} was built from {note.rows} passages of another text than the {len(corpus)} in "
            f"{corpus.path}: build it again, or give the corpus it was built from"
        )
    if retriever_name is not None and note.retriever_name and note.retriever_name != retriever_name:
        raise InputError(
            f"the index {index_path} was built with --retriever_name {note.retriever_name} and this is "
            f"{retriever_name}: give the one it was built with"
        )
