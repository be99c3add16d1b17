"""The styles of Mistral's models, old and new."""

import re

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, ToolFormat, call_with, json_at, named_call


class Mistral(ToolFormat):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]NAME[ARGS]{…}` for each call."""

    name = "mistral"
    _MARK = "[TOOL_CALLS]"
    _NAME = re.compile(r"\s*([^\s\[\]{}]+)(?:\[CALL_ID\][^\s\[\]{}]*)?\[ARGS\]")

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. An unreadable call reaches to the next `[TOOL_CALLS]`."""
        before, *parts = text.split(self._MARK)
        content: list[str] = [before.strip()]
        calls: list[ToolCall] = []
        for part in parts:
            name = self._NAME.match(part)
            found = json_at(part, name.end() if name else 0)
            if not found:
                calls.append(ToolCall(part.strip()))
                continue
            value, end = found
            written = part[:end].strip()
            if name:
                calls.append(call_with(written, name[1], value))
            else:
                calls += [named_call(written, one) for one in (value if isinstance(value, list) and value else [value])]
            content.append(part[end:].strip())
        return ParsedTurn("\n".join(filter(None, content)), tuple(calls))
