"""The result of an audit, `<corpus>.audit.json`: audit.py writes it, the server's /ready reports it.

The note holds the corpus's digest and is valid for that corpus only.
"""

import json
from pathlib import Path
from typing import NamedTuple

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.files import beside, write_json


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


def write_audits(corpus: Corpus, audits: list[SetAudit]) -> None:
    write_json(audit_path(corpus.path), {"corpus": corpus.digest, "sets": [audit._asdict() for audit in audits]})
