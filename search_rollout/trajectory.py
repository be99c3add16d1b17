"""The one owner of alignment: a trajectory's ids, loss mask and log-probabilities grow together or not at all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

from search_rollout.engine.sglang_reply import Reply
from search_rollout.protocols.base import Message


class StopReason(Enum):
    discards: bool  # the end is not the model's doing, so nothing of the trajectory is trained

    ANSWERED = "answered"  # the model gave an answer
    TURNS_USED = "turns_used"  # the answer-only turn brought no answer
    CALL_LIMIT = "call_limit"  # one engine call reached the caller's max_new_tokens before an action was complete
    CONTEXT_FULL = "context_full"  # no room for another token
    NO_ROOM_TO_OBSERVE = "no_room_to_observe"  # an observation or correction no longer fits, with the answer reserve
    ABORTED = "aborted"  # slime stopped the rollout; the sample will be resumed, or generated again
    BAD_SAMPLE = "bad_sample", True  # its prompt or its tools cannot be used; the log says why
    EMPTY_PROMPT = "empty_prompt", True  # there is nothing to continue
    PROMPT_TOO_LONG = "prompt_too_long", True  # the prompt alone fills the context
    ENGINE_FAILED = "engine_failed", True  # the engine did not answer, or not in a way that can be trained on
    SEARCH_FAILED = "search_failed", True  # a search failed, and SEARCH_FAILURE_MODE is discard
    ROUTER_MISMATCH = "router_mismatch", True  # the router's record is not what its replies carried
    INTERNAL_ERROR = "internal_error", True  # a fault of this plugin; the log has its traceback

    def __new__(cls, value: str, discards: bool = False) -> "StopReason":
        reason = object.__new__(cls)
        reason._value_, reason.discards = value, discards
        return reason


class Segment(NamedTuple):
    """A stretch of the response by one author: a turn is the model's, all else the environment's."""

    kind: Literal["turn", "observation", "correction"]
    text: str
    tokens: int


@dataclass
class Trajectory:
    """Prompt and response of one rollout. `append_model` and `append_env` are the only ways to grow the response.

    A turn of the model is one reply of the engine, or several where aborts cut it: then the turn is open, and the next
    reply continues it.

    Loss mask, strict: 1 exactly on the ids that the engine sampled, each with its log-probability; 0 and 0.0 on the
    environment's. Simple: 1 everywhere; the environment's ids get the engine's own log-probabilities with the next
    reply, and are dropped if no reply follows. `log_probs` stays None when they are not tracked.
    """

    max_length: int  # of prompt and response together
    track_log_probs: bool = True
    prompt_ids: list[int] = field(default_factory=list)
    simple_mask: bool = False
    think_opened: bool = False  # the prompt ends inside <think>
    response_ids: list[int] = field(default_factory=list)  # (T_resp,) prompt excluded
    loss_mask: list[int] = field(default_factory=list)  # (T_resp,) 1 = trained
    log_probs: list[float] | None = None  # (T_resp,) or None when not tracked
    segments: list[Segment] = field(default_factory=list)
    weight_versions: list[str] = field(default_factory=list)  # one per engine call that reported one
    meta_infos: list[Mapping[str, Any]] = field(default_factory=list)  # one per reply, without its log-probabilities
    finish: str = ""  # how the last reply ended: "stop", "length" or "abort"; empty before the first
    ended_turn: bool = False  # a stop token ended it, not a stop string

    def __post_init__(self) -> None:
        self.log_probs = [] if self.track_log_probs else None

    @property
    def ids(self) -> list[int]:
        """All ids so far: what the next engine call is sent."""
        return self.prompt_ids + self.response_ids

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def room(self) -> int:
        """How many more ids may be appended."""
        return self.max_length - self.length

    @property
    def unscored(self) -> int:
        """With the simple mask: how many ids at the end wait for the engine's log-probabilities."""
        last = self.segments[-1] if self.segments else None
        return last.tokens if self.simple_mask and last and last.kind != "turn" else 0

    @property
    def turns(self) -> int:
        """How many turns of the model there are, an open one included."""
        return sum(segment.kind == "turn" for segment in self.segments)

    @property
    def turn_is_open(self) -> bool:
        """True if an abort cut the model's last turn."""
        return self.finish == "abort" and bool(self.segments) and self.segments[-1].kind == "turn"

    @property
    def open_ids(self) -> list[int]:
        """The ids of the open turn so far; empty if none is open."""
        return self.response_ids[len(self.response_ids) - self.segments[-1].tokens :] if self.turn_is_open else []

    @property
    def needs_reply(self) -> bool:
        """False if the model's last turn is complete, and the environment has not answered it."""
        return not self.segments or self.segments[-1].kind != "turn" or self.turn_is_open

    @property
    def turn_began_in_thought(self) -> bool:
        """True if the model's last turn began inside <think>: the template opens it, or the prompt does."""
        return opens_thought(self.segments[-2].text) if len(self.segments) > 1 else self.think_opened

    def append_model(self, reply: Reply, text: str) -> None:
        """Adds what the engine sampled, verbatim, and its log-probabilities of the unscored ids before it.

        `text` is the whole turn's: that of `open_ids` and the reply's ids. Raises ValueError if ids and
        log-probabilities do not match, EngineError if the reply does not score the unscored ids.
        """
        if self.log_probs is not None:
            if reply.log_probs is None or len(reply.log_probs) != len(reply.ids):
                count = 0 if reply.log_probs is None else len(reply.log_probs)
                raise ValueError(f"{len(reply.ids)} ids came with {count} log_probs.")
            if self.unscored:
                self.log_probs[-self.unscored :] = reply.scores_of(self.response_ids[-self.unscored :])
            self.log_probs += reply.log_probs
        if reply.weight_version is not None:
            self.weight_versions.append(reply.weight_version)
        self.meta_infos.append(reply.facts)
        begun = self.segments.pop().tokens if self.turn_is_open else 0
        self._append(reply.ids, 1, Segment("turn", text, begun + len(reply.ids)))
        self.finish, self.ended_turn = reply.finish, reply.ended_turn

    def append_env(self, message: Message) -> None:
        if self.log_probs is not None:
            self.log_probs += [0.0] * len(message.ids)
        mask = 1 if self.simple_mask else 0
        self._append(message.ids, mask, Segment(message.kind, message.text, len(message.ids)))

    def drop_unscored(self) -> None:
        """Removes what no reply scored, at the end of a rollout with the simple mask."""
        if self.unscored:
            self._shorten(self.unscored)
            self.segments.pop()

    def drop_open(self, count: int, text: str) -> None:
        """Removes the last `count` ids of the open turn, whose text becomes `text`; a turn without ids is removed."""
        turn = self.segments.pop()
        self._shorten(count)
        if count < turn.tokens:
            self.segments.append(turn._replace(text=text, tokens=turn.tokens - count))

    def close_turn(self, finish: Literal["stop", "length"], *, ended_turn: bool = False) -> None:
        """Declares the open turn complete: there is nothing left for the engine to add."""
        self.finish, self.ended_turn = finish, ended_turn or self.ended_turn

    def restore(
        self,
        response_ids: Sequence[int],
        loss_mask: Sequence[int],
        log_probs: Sequence[float] | None,
        spans: Iterable[tuple[Literal["turn", "observation", "correction"], int]],  # kind, tokens
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        """Appends an earlier rollout's response to the prompt. Raises ValueError unless its parts are aligned."""
        spans = list(spans)
        lengths = {len(response_ids), len(loss_mask), sum(tokens for _, tokens in spans)}
        if len(lengths | ({len(log_probs)} if log_probs is not None else set())) != 1:
            raise ValueError("ids, loss mask, log_probs and spans have different lengths")
        if self.track_log_probs != (log_probs is not None):
            raise ValueError("log_probs are missing, or are no longer tracked")
        self.response_ids, self.loss_mask = list(response_ids), list(loss_mask)
        self.log_probs = None if log_probs is None else list(log_probs)
        self.segments, start = [], 0
        for kind, tokens in spans:
            self.segments.append(Segment(kind, decode(response_ids[start : start + tokens]), tokens))
            start += tokens

    def _shorten(self, count: int) -> None:
        end = len(self.response_ids) - count
        del self.response_ids[end:], self.loss_mask[end:]
        if self.log_probs is not None:
            del self.log_probs[end:]

    def _append(self, ids: Sequence[int], mask: int, segment: Segment) -> None:
        self.response_ids += ids
        self.loss_mask += [mask] * len(ids)
        self.segments.append(segment)


def opens_thought(text: str) -> bool:
    """True if the text ends in <think>, as some templates begin every turn of the model."""
    return text.rstrip().endswith("<think>")
