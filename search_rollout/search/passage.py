"""What a search finds: passages, or an error."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Origin = Literal["backend", "cache", "shared"]


class Passage(NamedTuple):
    """One document of the corpus."""

    title: str
    text: str
    score: float | None = None  # by which its retriever ranked it, larger is better; None: it gave none

    @classmethod
    def from_contents(cls, contents: str) -> "Passage":
        """From a corpus line's `contents`: a title on the first line, usually in quotes, and text below it."""
        title, _, text = contents.partition("\n")
        return cls(title.strip().strip('"'), text.strip())

    def as_row(self) -> list[str | float]:
        """Its fields for JSON, without a score that is None: `Passage(*row)` is the passage again."""
        return [field for field in self if field is not None]


@dataclass
class SearchResult:
    """The result of one query. If it failed, `error` says why and `passages` is empty."""

    query: str
    passages: list[Passage] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    origin: Origin = "backend"
