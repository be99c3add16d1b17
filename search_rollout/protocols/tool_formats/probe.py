"""Which family a tokenizer's chat template belongs to: its own rendering of a known call is given to every parser."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from search_rollout.protocols.chat_template import strip_end
from search_rollout.protocols.tool_formats.base import ToolFormat

QUESTION, WORDS = "what-the-user-asks", "what-the-assistant-says"
ARGUMENTS = {
    "queries": ['He said "yes", didn\'t he?', "Zürich\n東京 \\ 50%"],
    "comment": "one: [\"1\"]; 'two'\n{three}",
    "count": 3,
    "ratio": -0.5,
}
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches.",
        "parameters": {
            "type": "object",
            "properties": {
                "queries": {"type": "array", "items": {"type": "string"}},
                "comment": {"type": "string"},
                "count": {"type": "integer"},
                "ratio": {"type": "number"},
            },
        },
    },
}


_PROBES = (ARGUMENTS, {"queries": ARGUMENTS["queries"]})  # some templates do not part arguments


def recognise(tokenizer: Any, formats: Mapping[str, ToolFormat], remedy: str) -> ToolFormat:
    """The one format that reads back the call which the chat template wrote.

    Raises ValueError, with what the template wrote and `remedy`, if none does or several do.
    """
    found: set[str] = set()
    shown: list[str] = []
    for arguments in _PROBES:
        turns = list(dict.fromkeys(rendered_calls(tokenizer, arguments)))
        found = {name for turn in turns for name, form in formats.items() if reads_back(form, turn, arguments)}
        if len(found) == 1:
            return formats[found.pop()]
        shown += [turn for turn in turns if "queries" in turn]
    problem = f"can be read as {' and as '.join(sorted(found))}" if found else "is in none of the formats known here"
    raise ValueError(
        f"A tool call, as the tokenizer's chat template writes it, {problem}: {shown[0][:300]!r}. {remedy}"
        if shown
        else f"The tokenizer's chat template leaves out an assistant's tool calls. {remedy}"
    )


def fits(tokenizer: Any, form: ToolFormat) -> bool:
    """Whether the format reads the calls that the chat template writes; True also if the template writes none."""
    turns = [(turn, one) for one in _PROBES for turn in rendered_calls(tokenizer, one) if "queries" in turn]
    return not turns or any(reads_back(form, *turn) for turn in turns)


def reads_back(form: ToolFormat, turn: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the format reads the probe's call, and nothing else, out of a turn."""
    calls = form.with_tools([PROBE_TOOL]).split(turn).calls
    return [(call.name, call.arguments) for call in calls] == [(PROBE_TOOL["function"]["name"], arguments)]


def rendered_calls(tokenizer: Any, arguments: Mapping[str, Any]) -> Iterator[str]:
    """The probe's call as the template writes it, in each way that it takes one.

    Some templates want the arguments as an object and others as JSON, some no content and others an empty one.
    """
    for given, content in itertools.product((arguments, json.dumps(arguments, ensure_ascii=False)), ("", None)):
        function = {"name": PROBE_TOOL["function"]["name"], "arguments": given}
        call = {"id": "call00000", "type": "function", "function": function}
        try:
            header = _turn(tokenizer, {"role": "assistant", "content": WORDS}).partition(WORDS)[0]
            turn = _turn(tokenizer, {"role": "assistant", "content": content, "tool_calls": [call]})
        except Exception:  # templates raise what they like
            continue
        yield strip_end(tokenizer, turn.removeprefix(header.rstrip()).strip()).strip()


def _turn(tokenizer: Any, message: Mapping[str, Any]) -> str:
    """What the template writes for an assistant's message, header and end mark included."""
    messages = [{"role": "user", "content": QUESTION}, message]
    text = tokenizer.apply_chat_template(messages, tools=[PROBE_TOOL], tokenize=False, add_generation_prompt=False)
    return text.rpartition(QUESTION)[2]
