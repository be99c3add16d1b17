"""The JSON style of Llama 3.1 and later."""

import re
from collections.abc import Iterator

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, ToolFormat, json_at, named_call


class Llama3Json(ToolFormat):
    """`{"name": …, "parameters": {…}}`, several parted by `;` or `,` or in a list.

    The calls are the whole turn, or follow `<|python_tag|>` (Llama 4: `<|python_start|>words<|python_end|>`).
    """

    name = "llama3"
    _TAG = re.compile(r"<\|python_(?:tag|end)\|>")
    _BARE = re.compile(r'(?:\[\s*)?\{\s*"(?:name|type|parameters|function)"')
    _GAP = re.compile(r"(?:[\s;,]|<\|python_tag\|>)*")

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`. Text after the first call that is not a call counts as an unreadable one."""
        text = text.strip().removesuffix("<|eom_id|>").rstrip()  # instead of <|eot_id|>, where tools are awaited
        tag = self._TAG.search(text)
        if self._BARE.match(text):
            return ParsedTurn("", tuple(self._calls(text, 0)))
        if not tag:
            return ParsedTurn(text, ())
        content = text[: tag.start()].replace("<|python_start|>", "").strip()
        return ParsedTurn(content, tuple(self._calls(text, tag.end())))

    def _calls(self, text: str, position: int) -> Iterator[ToolCall]:
        while position < len(text):
            found = json_at(text, position)
            if not found:
                yield ToolCall(text[position:].strip())
                return
            value, end = found
            for one in value if isinstance(value, list) and value else [value]:
                yield named_call(text[position:end].strip(), one)
            gap = self._GAP.match(text, end)
            position = gap.end() if gap else end
