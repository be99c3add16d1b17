"""Calls as a Python list: Llama 4's tool calls, and Gemma 3's where a template teaches it tools."""

import json
import re
from typing import Any

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, ToolFormat

MAX_DEPTH = 32  # of lists and objects in an argument


class Pythonic(ToolFormat):
    """`[search(queries=["a", 'b']), search(…)]` at the start of a line, or after `<|python_start|>`."""

    name = "pythonic"
    _LIST = re.compile(r"(?:<\|python_start\|>\s*|^[ \t]*)(?=\[\s*[A-Za-z_][\w.]*\()", re.MULTILINE)
    _END = re.compile(r"\s*<\|python_end\|>")

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. A list that cannot be read is one unreadable call up to the end of the turn."""
        content: list[str] = []
        calls: list[ToolCall] = []
        position = 0
        while begin := self._LIST.search(text, position):
            content.append(text[position : begin.start()].strip())
            reader = _Reader(text, begin.end())
            try:
                calls += reader.calls()
            except ValueError:
                calls.append(ToolCall(text[begin.end() :].strip()))
                position = len(text)
                break
            end = self._END.match(text, reader.position)
            position = end.end() if end else reader.position
        content.append(text[position:].strip())
        return ParsedTurn("\n".join(filter(None, content)), tuple(calls))


class _Reader:
    """Reads literals from left to right, without Python's parser: nothing the model writes may be slow or too deep."""

    _SPACE = re.compile(r"\s*")
    _NAME = re.compile(r"\s*([A-Za-z_][\w.]*)\s*")
    _STRING = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
    _WORD = re.compile(r"[-+\w.]+")
    _ESCAPE = re.compile(r'\\x([0-9a-fA-F]{2})|\\(.)|"', re.DOTALL)

    def __init__(self, text: str, position: int) -> None:
        self._text = text
        self.position = position

    def calls(self) -> list[ToolCall]:
        """Parses a list of calls. Raises ValueError if the text is not one."""
        self._expect("[")
        found = []
        while not self._take("]"):
            begin, name, arguments = self.position, self._name(), {}
            self._expect("(")
            while not self._take(")"):
                key = self._name()
                self._expect("=")
                arguments[key] = self._value(0)
                if not self._take(","):
                    self._expect(")")
                    break
            found.append(ToolCall(self._text[begin : self.position].strip(), name, arguments))
            if not self._take(","):
                self._expect("]")
                break
        return found

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        if self._take("["):
            return self._items("]", depth)
        if self._take("{"):
            return dict(self._items("}", depth))
        if string := self._STRING.match(self._text, self.position):
            self.position = string.end()
            return self._unescaped(string[1] if string[1] is not None else string[2])
        word = self._WORD.match(self._text, self.position)
        if not word:
            raise ValueError("no value")
        self.position = word.end()
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(word[0], word[0]))

    def _items(self, end: str, depth: int) -> list[Any]:
        """The values up to `end`; pairs of key and value if it closes an object."""
        found: list[Any] = []
        while not self._take(end):
            value = self._value(depth + 1)
            if end == "}":
                self._expect(":")
                if not isinstance(value, str):
                    raise ValueError("a key that is not a string")
                value = value, self._value(depth + 1)
            found.append(value)
            if not self._take(","):
                self._expect(end)
                break
        return found

    def _unescaped(self, body: str) -> str:
        """The string between two quotes, by JSON's escapes and two of Python's."""
        as_json = self._ESCAPE.sub(_as_json, body)
        return json.loads(f'"{as_json}"', strict=False)

    def _name(self) -> str:
        name = self._NAME.match(self._text, self.position)
        if not name:
            raise ValueError("no name")
        self.position = name.end()
        return name[1]

    def _take(self, mark: str) -> bool:
        """Skips the mark with the space around it, if it comes next."""
        space = self._SPACE.match(self._text, self.position)
        self.position = space.end() if space else self.position
        if not self._text.startswith(mark, self.position):
            return False
        self.position += len(mark)
        return True

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise ValueError(f"no {mark}")


def _as_json(found: re.Match[str]) -> str:
    """JSON's spelling of an escape, or of a bare double quote."""
    if found[1]:
        return f"\\u00{found[1]}"
    return "'" if found[2] == "'" else found[0] if found[2] else '\\"'
