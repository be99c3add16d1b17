"""The protocol in tags: <think> … </think>, then <search> … </search> or <answer> … </answer>."""

import re
from collections.abc import Sequence
from typing import Literal

from search_rollout.protocols.base import Action, Message, RolloutProtocol, SearchCall, behind_thought
from search_rollout.protocols.chat_template import decode, encode, strip_end
from search_rollout.protocols.observation import fit, render_result
from search_rollout.search.passage import SearchResult

STOP_STRINGS = ("</search>", "</answer>")
OPEN, CLOSE = "\n\n<information>", "</information>\n\n"

CORRECTION = (
    "That was not a valid step. After thinking, write <search>a query</search> to look something up, "
    "or <answer>the answer</answer> to finish."
)


TAG = re.compile(r"(</?(?:think|search|information|answer)>)")  # a group, so that split() keeps the tags


def parse_turn(turn: str, *, think_opened: bool = False) -> Action:
    """The action of one model turn, and whether the turn keeps to the format. Takes time linear in its length.

    The action is the first closed <search> or <answer> after the last </think>. The format is `<think>…</think>` and
    one action, with only whitespace around them and no other tag inside. `think_opened` means that the turn began
    inside <think>. Strip special tokens from the end of the turn first.
    """
    rest = behind_thought(turn, think_opened)
    if rest is None:
        return Action("invalid", fault="open_thought")
    action = first_action(rest)
    if action.kind == "invalid":
        return action
    return judged(action, "<think>" + turn if think_opened else turn)


def first_action(text: str) -> Action:
    """The first closed <search> or <answer> of a text without thoughts. Only an invalid one has its fault yet."""
    kinds: tuple[Literal["search", "answer"], ...] = ("search", "answer")
    for close, kind in sorted((text.find(f"</{kind}>"), kind) for kind in kinds):
        _, opened, inside = text[: max(close, 0)].rpartition(f"<{kind}>")
        if not opened:
            continue
        inside = inside.strip()
        if kind == "answer":
            return Action("answer", inside)
        return Action("search", calls=(SearchCall((inside,)),)) if inside else Action("invalid", fault="empty_query")
    return Action("invalid", fault="no_action")


def judged(action: Action, turn: str) -> Action:
    """The action of a whole turn with its fault, if any. Several answers count as none: only one guess is allowed."""
    if action.kind == "answer":
        outside = "".join(piece.partition("<think>")[0] for piece in turn.split("</think>"))
        if outside.count("<answer>") > 1:
            return action._replace(text=None, fault="several_answers")
    return action._replace(fault=fault_of(turn, action.kind))


def fault_of(turn: str, kind: str) -> str | None:
    """How a whole turn departs from `<think>…</think><kind>…</kind>`; None if it does not."""
    match TAG.split(turn):  # text and tags by turns, so a pattern that fits has met every tag of the text
        case [before, "<think>", _, "</think>", between, opening, _, closing, after]:
            if (opening, closing) != (f"<{kind}>", f"</{kind}>"):
                return "stray_tag"
            return "stray_text" if before.strip() or between.strip() or after.strip() else None
        case [_, "<think>", _, "</think>", *_]:
            return "stray_tag"
    return "no_thought"


class XmlProtocol(RolloutProtocol):
    """Searches, answers and documents in tags."""

    stop_strings = STOP_STRINGS

    def parse(self, turn: str, *, think_opened: bool, ended: bool) -> Action:
        """See `parse_turn`; a complete action counts even if the turn was truncated after it."""
        action = parse_turn(strip_end(self._tokenizer, turn), think_opened=think_opened)
        return action if ended or action.kind != "invalid" else action._replace(fault="cut_off")

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
            ids = self._appended([{"role": "user", "content": CORRECTION}], last_id)
        else:
            ids = encode(self._tokenizer, f"\n{CORRECTION}\n")
        return Message(ids, decode(self._tokenizer, ids), "correction")
