"""The tagged style of GLM-4.5 and later."""

import re

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, TypedFormat


class Glm(TypedFormat):
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>`, in GLM-4.5 on several lines."""

    name = "glm"
    _CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
    _NAME = re.compile(r"\s*([\w.-]+)")
    _ARGUMENT = re.compile(r"\s*<arg_key>([^<>]*)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. A call needs its end tag: without one, arguments may be missing."""
        calls = tuple(self._call(match[1], match[0]) for match in self._CALL.finditer(text))
        return ParsedTurn(self._CALL.sub("", text).strip(), calls)

    def _call(self, body: str, whole: str) -> ToolCall:
        name = self._NAME.match(body)
        if not name or not whole.endswith("</tool_call>"):
            return ToolCall(body.strip())
        texts, position = {}, name.end()
        while match := self._ARGUMENT.match(body, position):
            texts[match[1].strip()], position = match[2], match.end()
        if body[position:].strip():
            return ToolCall(body.strip())
        return ToolCall(body.strip(), name[1], self._typed(name[1], texts))
