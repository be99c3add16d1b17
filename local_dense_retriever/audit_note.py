"""What an audit found, in `<corpus>.audit.json`: written by audit.py, reported by the server's /ready.

The note counts for the corpus that it was made for and for no other: it holds that corpus's digest.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from local_dense_retriever.corpus import Corpus


class SetAudit(NamedTuple):
    """What a corpus holds for the questions of one set."""

    name: str
    asked: str  # digest of the questions
    questions: int
    looked_up: int  # questions whose answer can be looked up: not yes or no
    answered: int  # of these, have a gold answer in at least one passage
    named: int  # questions that name the pages they need
    complete: int  # of these, have all of them in the corpus
    missing_pages: list[dict]  # {"title" or "passage_id": …, "questions": [ids]}
    missing_answers: list[dict]  # {"golds": […], "question": id}

    @property
    def bound(self) -> float | None:
        """The largest exact match by reading what the questions need; None unless all questions say what that is."""
        return self.complete / self.questions if self.named == self.questions else None


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def sentence(audit: SetAudit) -> str:
    """One line about a set: "musique: with this corpus …". A bound only where there is one."""
    hint = f"a gold answer stands in some passage for {share(audit.answered, audit.looked_up)} of those looked up"
    if audit.bound is None:
        return f"{audit.name}: {audit.questions:,} questions; {hint}, which is a hint and no bound"
    if audit.bound == 1.0:
        return f"{audit.name}: this corpus has all pages that its {audit.questions:,} questions need; {hint}"
    return (
        f"{audit.name}: with this corpus {audit.name} cannot exceed {audit.bound:.3f} by reading the pages that its "
        f"{audit.questions:,} questions need, though memory and other passages may add to that; {hint}"
    )


def audit_path(corpus: Path) -> Path:
    return corpus.with_name(corpus.name + ".audit.json")


def read_audits(corpus: Corpus) -> list[SetAudit]:
    """Those of this corpus as it is now; empty if there are none, or none that can be read."""
    try:
        note = json.loads(audit_path(corpus.path).read_text(encoding="utf-8"))
        return [SetAudit(**audit) for audit in note["sets"]] if note["corpus"] == corpus.digest else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def write_audits(corpus: Corpus, audits: list[SetAudit]) -> None:
    path = audit_path(corpus.path)
    temporary = path.with_name(path.name + ".tmp")
    note = {"corpus": corpus.digest, "sets": [audit._asdict() for audit in audits]}
    temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
