"""The Hermes style of Qwen2.5, Qwen3 and others."""

import re

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolFormat, json_value, named_call


class Hermes(ToolFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them."""

    name = "hermes"
    _CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. The last call of a turn may lack its end tag."""
        calls = tuple(named_call(match[1].strip(), json_value(match[1])) for match in self._CALL.finditer(text))
        return ParsedTurn(self._CALL.sub("", text).strip(), calls)
