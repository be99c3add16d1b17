"""What a model may ask for in one turn, and what the environment replies: the interface of both API modes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from search_rollout.protocols.chat_template import next_turn_ids
from search_rollout.protocols.observation import Neutralise
from search_rollout.search.passage import SearchResult


class SearchCall(NamedTuple):
    """One call of a turn: queries to run, or why it cannot be run."""

    queries: tuple[str, ...] = ()
    error: str | None = None  # a class of mistake, such as "unknown_tool"
    message: str = ""  # what the model reads about it


# How a turn can violate the format. The record and the viewer use the same names.
FAULTS = {
    "no_action": "neither a search nor an answer",
    "open_thought": "the turn ends inside <think>",
    "cut_off": "the turn was cut off by its length",
    "empty_query": "a search without a query",
    "several_answers": "more than one <answer>",
    "no_thought": "not exactly one <think>…</think> before the action",
    "stray_text": "text beside the thought and the action",
    "stray_tag": "a tag of the protocol where none belongs",
}


class Action(NamedTuple):
    """The model's request in one turn, and whether it kept to the format.

    The rollout executes it, the record stores it, and the reward reads the record, so a turn is parsed only once.
    """

    kind: Literal["search", "answer", "invalid"]
    text: str | None = None  # the answer, without whitespace around it; None: the turn ends without one
    calls: tuple[SearchCall, ...] = ()
    fault: str | None = None  # a key of FAULTS; None: the turn keeps to the format. Every invalid turn has one

    @property
    def queries(self) -> list[str]:
        return [query for call in self.calls for query in call.queries]

    @property
    def mistakes(self) -> list[str]:
        """What was wrong with calls that could not be run, by class."""
        return [call.error for call in self.calls if call.error]


class Message(NamedTuple):
    """What the environment says between two turns of the model: ids ready to append, encoded once."""

    ids: list[int]
    text: str
    kind: Literal["observation", "correction"]
    messages: tuple[dict[str, Any], ...] = ()  # the same in OpenAI's form, where the mode has messages


def behind_thought(turn: str, think_opened: bool) -> str | None:
    """The turn's text after its last </think>; None if it ends inside a thought, which hides everything."""
    _, closed, rest = turn.rpartition("</think>")
    return None if "<think>" in rest or (think_opened and not closed) else rest


class RolloutProtocol(ABC):
    """How the turns of one rollout are parsed, and replied to. None of the methods raises.

    `template_kwargs` are for the chat template, where the reply is a message of its own.
    """

    stop_strings: tuple[str, ...] = ()  # for every engine call, in addition to the caller's

    def __init__(
        self, tokenizer: Any, neutralise: Neutralise, max_obs_tokens: int, template_kwargs: Mapping[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self._neutralise = neutralise
        self._max_obs_tokens = max_obs_tokens
        self._template_kwargs = template_kwargs

    @abstractmethod
    def parse(self, turn: str, *, think_opened: bool, ended: bool) -> Action:
        """The action of a turn. `think_opened`: it began inside <think>. `ended`: its length did not cut it off."""

    @abstractmethod
    def observe(self, action: Action, results: Sequence[SearchResult], last_id: int) -> Message:
        """The results of the action's queries, in order, as the model reads them; `last_id` is the id before them."""

    @abstractmethod
    def correct(self, last_id: int, ended_turn: bool) -> Message:
        """Tells the model what a valid turn is, after an invalid one. `ended_turn`: a stop token ended that turn."""

    def _appended(self, messages: Sequence[dict[str, Any]], last_id: int) -> list[int]:
        """The ids of messages behind the model's turn, and of the next turn's beginning."""
        return next_turn_ids(self._tokenizer, messages, last_id, **self._template_kwargs)
