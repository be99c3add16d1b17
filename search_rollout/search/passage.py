"""What a search finds: passages, or an error."""

from dataclasses import dataclass, field
from typing import Literal

Origin = Literal["backend", "cache", "shared"]


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of the corpus. Two are equal if title and text are, whatever their scores for a query."""

    title: str
    text: str
    score: float | None = field(default=None, compare=False)  # the retriever's, larger is better; None: it gave none

    @classmethod
    def from_contents(cls, contents: str, score: float | None = None) -> "Passage":
        """From a corpus line's `contents`: a title on the first line, usually in quotes, and text below it."""
        title, _, text = contents.partition("\n")
        return cls(title.strip().strip('"'), text.strip(), score)

    def as_row(self) -> list[str | float]:
        """Its fields for JSON, without a score that is None: `Passage(*row)` is the passage again."""
        return [self.title, self.text] if self.score is None else [self.title, self.text, self.score]


@dataclass
class SearchResult:
    """The result of one query. If it failed, `error` says why and `passages` is empty."""

    query: str
    passages: list[Passage] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    origin: Origin = "backend"
