"""The styles of DeepSeek-V3, R1 and V3.1."""

import re

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, ToolFormat, call_with, json_value


class DeepSeek(ToolFormat):
    """`<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>` between `<｜tool▁calls▁begin｜>` and its end.

    V3 and R1 write `function<｜tool▁sep｜>NAME`, and the arguments in a fenced block.
    """

    name = "deepseek"
    _CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)(?:<｜tool▁call▁end｜>|(?=<｜tool▁calls▁end｜>)|\Z)", re.DOTALL)
    _MARK = re.compile(r"<｜tool▁calls▁(?:begin|end)｜>")
    _FENCED = re.compile(r"\s*function<｜tool▁sep｜>([^\n]+)\n```json\n(.*?)\n?```\s*", re.DOTALL)

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. The last call of a turn may lack its end mark; none may lack the mark before all calls."""
        begin = text.find("<｜tool▁calls▁begin｜>")
        calls = tuple(
            self._call(match[1]) if 0 <= begin < match.start() else ToolCall(match[1].strip())
            for match in self._CALL.finditer(text)
        )
        return ParsedTurn(self._MARK.sub("", self._CALL.sub("", text)).strip(), calls)

    def _call(self, body: str) -> ToolCall:
        fenced = self._FENCED.fullmatch(body)
        name, mark, arguments = (fenced[1], "-", fenced[2]) if fenced else body.partition("<｜tool▁sep｜>")
        return call_with(body.strip(), name.strip() if mark else None, json_value(arguments))
