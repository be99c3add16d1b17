"""What every family's format gives back, and how calls and values are read from JSON and from text."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple


class ToolCall(NamedTuple):
    """One call as the model wrote it; `arguments` is None if `text` cannot be read as a call."""

    text: str
    name: str = ""
    arguments: dict[str, Any] | None = None


class ParsedTurn(NamedTuple):
    content: str  # everything outside the calls, thoughts included
    calls: tuple[ToolCall, ...]


class ToolFormat(ABC):
    """One family's way of writing calls."""

    name: ClassVar[str]  # the value of the tool_call_format setting

    @abstractmethod
    def split(self, text: str) -> ParsedTurn:
        """The calls, and the text without them. Never raises; takes time linear in the text."""

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> "ToolFormat":
        """This format for a rollout with these tools; only formats that write values as text need them."""
        return self


class TypedFormat(ToolFormat):
    """A format that writes every value as text; the tools' schemas say which of them are not strings."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        functions = [_object(tool, "function") for tool in tools]
        self._schemas = {one.get("name"): _object(_object(one, "parameters"), "properties") for one in functions}

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> "ToolFormat":
        return type(self)(tools)

    def _typed(self, name: str, texts: Mapping[str, str]) -> dict[str, Any]:
        schemas = self._schemas.get(name, {})
        return {key: _typed_value(text, schemas.get(key)) for key, text in texts.items()}


def json_value(text: str) -> Any:
    """The JSON value of a text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


def json_at(text: str, position: int) -> tuple[Any, int] | None:
    """The JSON value at a position, after optional space, and its end; None if there is none."""
    space = _SPACE.match(text, position)
    try:
        return _DECODER.raw_decode(text, space.end() if space else position)
    except (ValueError, RecursionError):
        return None


def named_call(text: str, value: Any) -> ToolCall:
    """The call in a JSON value; unreadable if it is not {"name": str, "arguments" or "parameters": object}."""
    if not isinstance(value, dict):
        return ToolCall(text)
    arguments = value.get("arguments", value.get("parameters", {}))
    return call_with(text, value.get("name", value.get("function")), arguments)


def call_with(text: str, name: Any, arguments: Any) -> ToolCall:
    """The call of this name with these arguments; unreadable if they are not a string and an object."""
    if isinstance(arguments, str):  # some models quote the object once more
        arguments = json_value(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall(text)
    return ToolCall(text, name, arguments)


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under this key of a tool, which a client of the token router may have left out."""
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


_PYTHON_WORDS = {"True": True, "False": False, "None": None}  # as templates write what is neither text nor JSON


def _typed_value(text: str, schema: Any) -> Any:
    """The value written in a text; the text itself if the schema allows strings or nothing else fits."""
    if _allows_text(schema):
        return text
    if text.strip() in _PYTHON_WORDS:
        return _PYTHON_WORDS[text.strip()]
    found = json_at(text.strip(), 0)
    return found[0] if found and found[1] == len(text.strip()) else text


def _allows_text(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return True
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, Sequence):
        return any(_allows_text(option) for option in options)
    kind = schema.get("type", "string")
    return "string" in (kind if isinstance(kind, list) else [kind])
