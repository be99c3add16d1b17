"""How families of models write tool calls: one class each, from the text of a turn to calls.

A family more is a class more here, and its name in FORMATS.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol


class ToolCall(NamedTuple):
    """One call as the model wrote it; `arguments` is None where `text` is not readable as a call."""

    text: str
    name: str = ""
    arguments: dict[str, Any] | None = None


class ParsedTurn(NamedTuple):
    content: str  # what stands outside the calls, thinking included
    calls: tuple[ToolCall, ...]


class ToolFormat(Protocol):
    """One family's way of writing calls."""

    template_mark: str  # what only templates of this family contain

    def split(self, text: str) -> ParsedTurn:
        """Calls, and the text without them. Never raises; takes time linear in the text."""
        ...


class Hermes:
    """Qwen2.5, Qwen3 and others: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them."""

    template_mark = "<tool_call>"
    _CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)

    def split(self, text: str) -> ParsedTurn:
        """Calls, and the text without them; a call that the end of the turn cuts off may do without its end tag."""
        calls = tuple(_call(match[1].strip(), _json(match[1])) for match in self._CALL.finditer(text))
        return ParsedTurn(self._CALL.sub("", text).strip(), calls)


class Llama3Json:
    """Llama 3.1 and later: the turn is `{"name": …, "parameters": {…}}`, several parted by `;`."""

    template_mark = "<|python_tag|>"
    _GAP = re.compile(r"[\s;]*")

    def split(self, text: str) -> ParsedTurn:
        """Calls, and nothing else; or no call, and the text."""
        body = text.strip().removesuffix("<|eom_id|>")  # ends a turn that awaits its tools, beside the usual <|eot_id|>
        tagged = body.startswith("<|python_tag|>")
        body = body.removeprefix("<|python_tag|>").strip()
        if not tagged and not re.match(r'\{\s*"(?:name|type|parameters|function)"', body):
            return ParsedTurn(text.strip(), ())
        return ParsedTurn("", tuple(self._calls(body)))

    def _calls(self, body: str) -> Iterator[ToolCall]:
        position = 0
        while position < len(body):
            try:
                value, end = json.JSONDecoder().raw_decode(body, position)
            except (ValueError, RecursionError):
                yield ToolCall(body[position:])
                return
            yield _call(body[position:end], value)
            gap = self._GAP.match(body, end)
            position = gap.end() if gap else end


FORMATS: dict[str, ToolFormat] = {"hermes": Hermes(), "llama3": Llama3Json()}


def tool_format(tokenizer: Any, name: str = "auto") -> ToolFormat:
    """The format by name, or the one that the tokenizer's chat template teaches. Raises ValueError if there is none."""
    if name != "auto":
        return FORMATS[name]
    template = tokenizer.get_chat_template(tools=[{}])
    for known in FORMATS.values():
        if known.template_mark in template:
            return known
    raise ValueError(
        "The tokenizer's chat template shows no way of calling tools that is known here. Use a model whose template "
        f"has tools, or name its format: SEARCH_R1_TOOL_CALL_FORMAT={' or '.join(FORMATS)}."
    )


def parse_turn(form: ToolFormat, text: str, *, think_opened: bool = False) -> ParsedTurn | None:
    """Content and calls of one model turn. What the model thinks is content; calls are looked for behind it.

    None if the turn ends inside <think>. `think_opened`: the prompt itself ended in <think>.
    """
    thought, closed, rest = text.rpartition("</think>")
    if "<think>" in rest or (think_opened and not closed):
        return None
    content, calls = form.split(rest)
    return ParsedTurn((thought + closed + "\n" + content).strip() if closed else content, calls)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(text: str, value: Any) -> ToolCall:
    """The call in a JSON value; unreadable if it is not {"name": str, "arguments" or "parameters": object}."""
    if not isinstance(value, dict):
        return ToolCall(text)
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote the object once more
        arguments = _json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall(text)
    return ToolCall(text, name, arguments)
