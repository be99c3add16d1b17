"""Notes beside an index and a corpus, as JSON.

    <index>.json           what an index was made from, so that an index of another corpus is refused
    <corpus>.audit.json    what an audit found: audit.py writes it for this corpus, the server's /ready reports it

An index without a note (wiki-18's, or your own) is checked only for its numbers of rows and dimensions.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple, Self

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

    def differences(self, other: Self) -> str:
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


def check_belongs(index: str | Path, note: IndexNote | None, corpus: Corpus, retriever_name: str) -> None:
    """Raises InputError if the note names another corpus or another encoder than this; empty fields go unchecked."""
    if note and note.corpus_digest not in ("", corpus.digest):
        if partial(Path(index)).exists():
            raise InputError(
                f"the index {index} does not belong to {corpus.path}, and {partial(Path(index))} is left over from an "
                "interrupted build_index.py: run the same command again"
            )
        raise InputError(
            f"the index {index} was built from {note.rows} passages of another text than the {len(corpus)} in "
            f"{corpus.path}: build it again, or give the corpus it was built from"
        )
    if note and note.retriever_name not in ("", retriever_name):
        raise InputError(
            f"the index {index} was built with --retriever_name {note.retriever_name} and this is "
            f"{retriever_name}: give the one it was built with"
        )


class SetAudit(NamedTuple):
    name: str
    asked: str  # digest of the questions
    questions: int
    looked_up: int  # questions whose answer is not yes or no
    answered: int  # how many of these have a gold answer in at least one passage
    named: int  # questions that name the pages they need
    complete: int  # how many of these have all of them in the corpus
    missing_pages: list[dict]  # {"title" or "passage_id": …, "questions": [ids]}
    missing_answers: list[dict]  # {"golds": […], "question": id}

    @property
    def bound(self) -> float | None:
        """The maximum exact match by reading the needed pages; None unless all questions name theirs."""
        return self.complete / self.questions if self.named == self.questions else None


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def sentence(audit: SetAudit) -> str:
    """One line about a set: "musique: with this corpus …". It states a bound only if all questions name their pages."""
    hint = f"some passage has a gold answer for {share(audit.answered, audit.looked_up)} of those looked up"
    if audit.bound is None:
        return f"{audit.name}: {audit.questions:,} questions; {hint} (a hint, not a bound)"
    if audit.bound == 1.0:
        return f"{audit.name}: this corpus has all pages that its {audit.questions:,} questions need; {hint}"
    return (
        f"{audit.name}: with this corpus {audit.name} cannot exceed {audit.bound:.3f} by reading the pages that its "
        f"{audit.questions:,} questions need, though memory and other passages may add to that; {hint}"
    )


def audit_path(corpus: Path) -> Path:
    return beside(corpus, ".audit.json")


def read_audits(corpus: Corpus) -> list[SetAudit]:
    """The audits of this corpus in its current state; empty if there are none or the note cannot be read."""
    try:
        note = json.loads(audit_path(corpus.path).read_text(encoding="utf-8"))
        return [SetAudit(**audit) for audit in note["sets"]] if note["corpus"] == corpus.digest else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
