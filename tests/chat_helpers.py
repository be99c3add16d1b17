"""Turns of a model that calls tools, and a small tokenizer whose template knows tools."""

import json
import re
from typing import Any

from fakes import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from demo.models import TOOL_TEMPLATE

END = "<|im_end|>"


def tool_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the demo's chat template: tools in the Hermes style of Qwen2.5."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def call(*queries: Any, name: str = "search", **arguments: Any) -> str:
    """A call of the search tool, or of another one with these arguments."""
    return raw_call(json.dumps({"name": name, "arguments": arguments or {"queries": list(queries)}}))


def raw_call(text: str) -> str:
    """Anything in the tags of a call."""
    return f"<tool_call>\n{text}\n</tool_call>"


def calling(*queries: str, end: str = END) -> str:
    """A whole turn: a thought, one call, the end of the turn."""
    return f"<think>I need it.</think>\n{call(*queries)}{end}"


def tool_responses(text: str) -> list[str]:
    """What stands in the tool messages of a rendered text."""
    return re.findall(r"<tool_response>\n(.*?)\n</tool_response>", text, re.DOTALL)
