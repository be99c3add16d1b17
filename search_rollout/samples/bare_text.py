"""Builds a record from a response that is only text, with the parsers that read the turns of a rollout.

It is for samples of other rollout functions. Text alone does not show whether an observation is real or invented by the
model, or which passages it contains, so prefer the recorded rollout if there is one.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator

from search_rollout.protocols import tools, xml
from search_rollout.protocols.base import Action
from search_rollout.protocols.prompts import SEARCH_TOOL
from search_rollout.protocols.tool_formats import ToolFormat, named_format
from search_rollout.samples.record import RolloutRecord, Span, Turn
from search_rollout.trajectory import StopReason

_OBSERVATION = re.compile(r"(?:\n\n)?<information>"), re.compile(r"</information>(?:\n\n)?")
_TOOL_MESSAGES = (  # in ChatML; with other templates the response is one turn
    re.compile(r"<\|im_end\|>\s{0,9}<\|im_start\|>(?:user|tool)\n"),
    re.compile(r"<\|im_start\|>assistant\n"),
)
_END_MARK = re.compile(r"(?:<\|[^<>|]{1,40}\|>|</s>|<end_of_turn>)\Z")


def xml_record(response: str | None, *, think_opened: bool = False) -> RolloutRecord:
    """The record of a response in XML tags; closed <information> blocks are the environment's.

    `think_opened` means that the prompt ended in <think>.
    """
    return _record(split(response or "", _OBSERVATION), xml.parse_turn, think_opened)


def tool_record(
    response: str | None, *, tool_format: str = "hermes", max_calls: int = 8, think_opened: bool = False
) -> RolloutRecord:
    """The record of a response with calls of the search tool in a model family's format."""
    form, read_calls = _form(tool_format).with_tools([SEARCH_TOOL]), tools.CallReader([SEARCH_TOOL], max_calls)
    parse = functools.partial(tools.parse_turn, form=form, read_calls=read_calls)
    return _record(split(response or "", _TOOL_MESSAGES), parse, think_opened)


@functools.cache  # one of SGLang's detectors is a process
def _form(name: str) -> ToolFormat:
    return named_format(name)


def split(response: str, block: tuple[re.Pattern[str], re.Pattern[str]]) -> Iterator[tuple[bool, str]]:
    """Splits the response into non-empty stretches (by the model?, text), in linear time.

    `block` matches the begin and end of the environment's stretches; an unclosed one is the model's.
    """
    begin, end = block
    position = 0
    while (first := begin.search(response, position)) and (last := end.search(response, first.end())):
        if first.start() > position:
            yield True, response[position : first.start()]
        yield False, response[first.start() : last.end()]
        position = last.end()
    if position < len(response):
        yield True, response[position:]


def _without_end_marks(turn: str) -> str:
    while mark := _END_MARK.search(turn := turn.rstrip(), max(len(turn) - 50, 0)):
        turn = turn[: mark.start()]
    return turn


def _record(stretches: Iterable[tuple[bool, str]], parse: Callable[..., Action], think_opened: bool) -> RolloutRecord:
    spans, turns, opened = [], [], think_opened
    for by_model, text in stretches:
        spans.append(Span("turn" if by_model else "observation", 0))  # text has no token counts
        if by_model:
            turns.append(Turn.of(parse(_without_end_marks(text), think_opened=opened)))
            opened = False
        else:
            opened = text.rstrip().endswith("<think>")
    answered = bool(turns) and turns[-1].action == "answer"
    return RolloutRecord(StopReason.ANSWERED if answered else StopReason.TURNS_USED, "", spans, turns)
