"""The prompts: used by data preparation, training, evaluation and the demo alike.

A question becomes messages in both modes: in XML mode they explain the tags, in chat mode the tools are passed with
them. slime renders them with the tokenizer's chat template. A model without one takes plain text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

PromptMode: TypeAlias = Literal["generate", "chat", "text"]  # as LLM_API_MODE; text: XML mode without a chat template

XML_INSTRUCTIONS = (
    "Answer the question. First reason inside <think> and </think>. Then either search with "
    "<search>query</search>, and read what comes back between <information> and </information>, "
    "or give the answer in a few words with <answer>answer</answer>. Search as often as you need."
)
CHAT_INSTRUCTIONS = (
    "Answer the question. First reason inside <think> and </think>. Then either call the search tool, "
    "or give the answer in a few words with <answer>answer</answer>. Search as often as you need."
)
SEARCH_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches for documents. Several queries at once are searched side by side.",
        "parameters": {
            "type": "object",
            "properties": {
                "queries": {"type": "array", "items": {"type": "string"}, "description": "What to search for."}
            },
            "required": ["queries"],
        },
    },
}


def clean_question(question: str) -> str:
    """A question on one line; one that ends in a word gets its question mark, which NQ and others omit."""
    text = " ".join(question.split())
    return text + "?" if text and (text[-1].isalnum() or text[-1] in "\"')") else text


def xml_messages(question: str) -> list[dict[str, str]]:
    """The prompt of XML mode: an explanation of the tags, then the question."""
    return _messages(XML_INSTRUCTIONS, question)


def chat_messages(question: str) -> list[dict[str, str]]:
    """The prompt of chat mode, to be rendered with the tools."""
    return _messages(CHAT_INSTRUCTIONS, question)


def prompt_of(question: str, mode: PromptMode) -> list[dict[str, str]] | str:
    """The prompt of any mode: messages, or in "text" a string, for models without a chat template."""
    if mode == "text":
        return f"{XML_INSTRUCTIONS}\n\nQuestion: {clean_question(question)}\n"
    return chat_messages(question) if mode == "chat" else xml_messages(question)


def prompt_row(
    question: str, targets: Sequence[str], data_source: str, *, mode: PromptMode, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of slime's prompt data; `extra` (id, split, index) joins the metadata.

    The tools are a column for `--tool-key tools`, and in the metadata for slime versions that drop that column. As
    JSON: a parquet struct would come back with the keys of all other rows' tools.
    """
    metadata = {**extra, "question": clean_question(question), "data_source": data_source}
    row = {
        "prompt": prompt_of(question, mode),
        "reward_model": {"style": "rule", "ground_truth": {"target": list(targets)}},
        "data_source": data_source,
        "extra_info": dict(extra),
        "metadata": metadata,
    }
    if mode == "chat":
        row["tools"] = metadata["tools"] = json.dumps([SEARCH_TOOL])
    return row


def _messages(instructions: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": instructions}, {"role": "user", "content": clean_question(question)}]
