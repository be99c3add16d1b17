"""How families of models write tool calls: one class each, from the text of a turn to calls.

Another family is another class here, in FORMATS.
"""

from typing import Any

from search_rollout.protocols.base import behind_thought
from search_rollout.protocols.chat_template import check_appending
from search_rollout.protocols.tool_formats.base import ParsedTurn as ParsedTurn
from search_rollout.protocols.tool_formats.base import ToolCall as ToolCall
from search_rollout.protocols.tool_formats.base import ToolFormat as ToolFormat
from search_rollout.protocols.tool_formats.deepseek import DeepSeek
from search_rollout.protocols.tool_formats.glm import Glm
from search_rollout.protocols.tool_formats.hermes import Hermes
from search_rollout.protocols.tool_formats.llama3 import Llama3Json
from search_rollout.protocols.tool_formats.mistral import Mistral
from search_rollout.protocols.tool_formats.probe import fits as fits
from search_rollout.protocols.tool_formats.probe import recognise
from search_rollout.protocols.tool_formats.pythonic import Pythonic
from search_rollout.protocols.tool_formats.qwen_xml import QwenXml
from search_rollout.protocols.tool_formats.sglang import PREFIX, SGLangFormat

FORMATS: dict[str, ToolFormat] = {
    form.name: form for form in (Hermes(), QwenXml(), Llama3Json(), Mistral(), DeepSeek(), Glm(), Pythonic())
}
REMEDY = (
    "Use a model whose template writes tool calls, or name its format: "
    f"SEARCH_R1_TOOL_CALL_FORMAT={', '.join(FORMATS)} or {PREFIX}NAME."
)


def is_format(name: str) -> bool:
    """Whether this can be the value of the setting: auto, a name in FORMATS, or `sglang:NAME`."""
    return name in ("auto", *FORMATS) or (name.startswith(PREFIX) and name != PREFIX)


def tool_format(tokenizer: Any, name: str = "auto") -> ToolFormat:
    """The format of that name, or the one that reads what the tokenizer's chat template writes (auto).

    Raises ValueError, with the remedy, if no format fits, or if tool messages cannot be appended with this template.
    """
    check_appending(tokenizer, "tool")
    return recognise(tokenizer, FORMATS, REMEDY) if name == "auto" else named_format(name)


def named_format(name: str) -> ToolFormat:
    """The format of a name in FORMATS, or of `sglang:NAME`. Raises ValueError if SGLang has no such detector."""
    return SGLangFormat(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else FORMATS[name]


def parse_turn(form: ToolFormat, text: str, *, think_opened: bool = False) -> ParsedTurn | None:
    """The content and calls of one model turn. Thoughts are content; calls count only after the last thought.

    None if the turn ends inside <think>. `think_opened` means that the prompt ended in <think>.
    """
    rest = behind_thought(text, think_opened)
    if rest is None:
        return None
    thought, closed, _ = text.rpartition("</think>")
    content, calls = form.split(rest)
    return ParsedTurn((thought + closed + "\n" + content).strip() if closed else content, calls)
