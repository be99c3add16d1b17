"""The protocol in tags: <think> … </think>, then <search> … </search> or <answer> … </answer>."""

from typing import Literal, NamedTuple

STOP_STRINGS = ("</search>", "</answer>")
TAGS = ("think", "search", "information", "answer")

CORRECTION = (
    "That was not a valid step. After thinking, write <search>a query</search> to look something up, "
    "or <answer>the answer</answer> to finish."
)


class Action(NamedTuple):
    """What the model asked for in one turn; `text` is the query or the answer."""

    kind: Literal["search", "answer", "invalid"]
    text: str = ""


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
            return Action("invalid") if kind == "search" and not text else Action(kind, text)
    return Action("invalid")
