"""The XML style of Qwen3-Coder, Qwen3.5 and later."""

import re

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, TypedFormat


class QwenXml(TypedFormat):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`, on several lines."""

    name = "qwen_xml"
    _CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
    _FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>")
    _PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
    _END = re.compile(r"\s*</function>\s*")

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. The last call of a turn may lack `</tool_call>`."""
        calls = tuple(self._call(match[1]) for match in self._CALL.finditer(text))
        return ParsedTurn(self._CALL.sub("", text).strip(), calls)

    def _call(self, body: str) -> ToolCall:
        function = self._FUNCTION.match(body)
        if not function:
            return ToolCall(body.strip())
        texts, position = {}, function.end()
        while match := self._PARAMETER.match(body, position):
            texts[match[1]], position = match[2], match.end()
        if not self._END.fullmatch(body, position):
            return ToolCall(body.strip())
        return ToolCall(body.strip(), function[1], self._typed(function[1], texts))
