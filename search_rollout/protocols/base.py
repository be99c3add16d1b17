"""What a model may ask for in one turn, and what answers it: the interface of both API modes."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from search_rollout.search.searcher import SearchResult


class SearchCall(NamedTuple):
    """One call of a turn: queries to run, or why it cannot be run."""

    queries: tuple[str, ...] = ()
    error: str | None = None  # a class of mistake, such as "unknown_tool"
    message: str = ""  # what the model reads about it


class Action(NamedTuple):
    """What the model asked for in one turn; `text` is the query or the answer, where there is just one."""

    kind: Literal["search", "answer", "invalid"]
    text: str = ""
    calls: tuple[SearchCall, ...] = ()

    @property
    def queries(self) -> list[str]:
        """All queries of all calls."""
        return [query for call in self.calls for query in call.queries]


class Message(NamedTuple):
    """What the environment says between two turns of the model: ids ready to append, encoded once."""

    ids: list[int]
    text: str
    kind: Literal["observation", "correction"]
    messages: tuple[dict[str, Any], ...] = ()  # the same in OpenAI's form, where the mode has messages


class RolloutProtocol(Protocol):
    """How one rollout's turns are read and answered. Neither `parse` nor the answers ever raise."""

    stop_strings: tuple[str, ...]  # of every engine call, beside the caller's

    def parse(self, turn: str, *, think_opened: bool, ended: bool) -> Action:
        """The action of a turn. `think_opened`: it began inside <think>. `ended`: it was not cut off by its length."""
        ...

    def observe(self, action: Action, results: Sequence[SearchResult], last_id: int) -> Message:
        """The results of the action's queries, in their order, as the model reads them behind `last_id`."""
        ...

    def correct(self, last_id: int, ended_turn: bool) -> Message:
        """What a valid turn is, behind an invalid one. `ended_turn`: a stop token ended it, not a stop string."""
        ...
