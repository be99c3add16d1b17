"""The protocol in tags: <think> … </think>, then <search> … </search> or <answer> … </answer>."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from search_rollout.protocols.base import Action, Message, SearchCall
from search_rollout.protocols.chat_template import decode, encode, next_turn_ids
from search_rollout.protocols.observation import Neutralise, fit, render_result
from search_rollout.search.searcher import SearchResult

STOP_STRINGS = ("</search>", "</answer>")
OPEN, CLOSE = "\n\n<information>", "</information>\n\n"

CORRECTION = (
    "That was not a valid step. After thinking, write <search>a query</search> to look something up, "
    "or <answer>the answer</answer> to finish."
)


def parse_action(turn: str, *, think_opened: bool = False) -> Action:
    """The action of one model turn, looked for after its last </think>.

    An unclosed <think> hides everything behind it, and a search without a query is none: both are invalid.
    `think_opened`: the prompt itself ended in <think>.
    """
    _, closed, rest = turn.rpartition("</think>")
    if "<think>" in rest or (think_opened and not closed):
        return Action("invalid")
    kinds: tuple[Literal["search", "answer"], ...] = ("search", "answer")
    closings = sorted((rest.find(f"</{kind}>"), kind) for kind in kinds)
    for close, kind in closings:
        _, opened, text = rest[: max(close, 0)].rpartition(f"<{kind}>")
        if opened:
            text = text.strip()
            if kind == "answer":
                return Action("answer", text)
            return Action("search", text, (SearchCall((text,)),)) if text else Action("invalid")
    return Action("invalid")


class XmlProtocol:
    """See `RolloutProtocol`; `template_kwargs` are for corrections that are a turn of their own."""

    stop_strings: tuple[str, ...] = STOP_STRINGS

    def __init__(
        self, tokenizer: Any, neutralise: Neutralise, max_obs_tokens: int, template_kwargs: Mapping[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self._neutralise = neutralise
        self._max_obs_tokens = max_obs_tokens
        self._template_kwargs = template_kwargs

    def parse(self, turn: str, *, think_opened: bool, ended: bool) -> Action:
        """See `parse_action`; a complete action counts even in a turn that was cut off behind it."""
        return parse_action(turn, think_opened=think_opened)

    def observe(self, action: Action, results: Sequence[SearchResult], last_id: int) -> Message:
        """The documents in <information>, cut at their end where they are too long, never in the closing tag."""

        def render(bodies: Sequence[str]) -> str:
            return OPEN + "".join(bodies) + CLOSE

        bodies = [render_result(result, self._neutralise) for result in results]
        ids, bodies = fit(bodies, lambda bodies: encode(self._tokenizer, render(bodies)), self._max_obs_tokens)
        return Message(ids, render(bodies), "observation")

    def correct(self, last_id: int, ended_turn: bool) -> Message:
        """A user turn if the model ended its own, else text within it."""
        if ended_turn and self._tokenizer.chat_template:
            message = {"role": "user", "content": CORRECTION}
            ids = next_turn_ids(self._tokenizer, [message], last_id, **self._template_kwargs)
        else:
            ids = encode(self._tokenizer, f"\n{CORRECTION}\n")
        return Message(ids, decode(self._tokenizer, ids), "correction")
