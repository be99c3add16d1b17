"""Turns of every family of models: sound ones, and pieces of all families thrown together."""

import json
import random
from typing import Any

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {
                "queries": {"type": "array", "items": {"type": "string"}},
                "comment": {"type": "string"},
                "count": {"type": "integer"},
                "ratio": {"type": ["number", "null"]},
                "strict": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                "filter": {"type": "object"},
            },
        },
    },
}
PIECES = (
    "<tool_call>", "</tool_call>", "<function=search>", "</function>", "<parameter=queries>", "</parameter>", "search",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<|python_tag|>", "<|python_start|>", "<|python_end|>",
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```json\n", "\n```", "[search(", "queries=", ")]", "(", ")", "[",
    "]", "{", "}", '"', "'", "\\", "\\x4", ",", ";", ":", "=", "\n", " ", "null", "True", "1e999", "-", "9" * 40, "漢",
    "é", "\ud800", "\0", '{"name": "search", "arguments": ', '{"queries": ["a"]}', "}", "<think>", "</think>", "It.",
)  # fmt: skip
SOUND = {
    "hermes": '<tool_call>{"name": "search", "arguments": {"queries": ["a"]}}</tool_call>',
    "qwen_xml": '<tool_call><function=search><parameter=queries>["a"]</parameter></function></tool_call>',
    "llama3": '<|python_tag|>{"name": "search", "parameters": {"queries": ["a"]}}',
    "mistral": '[TOOL_CALLS]search[ARGS]{"queries": ["a"]}',
    "deepseek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{"queries": ["a"]}<｜tool▁call▁end｜>',
    "glm": '<tool_call>search\n<arg_key>queries</arg_key><arg_value>["a"]</arg_value></tool_call>',
    "pythonic": '\n[search(queries=["a"])]',
}
WORDS = (
    "Kenya", "capital of", "Who wrote 'Hamlet'?", 'the "Ring"', "1998", "3.14", "null", "True", "[1]", "{}", "a, b; c",
    "naïve", "漢字", "Москва", "😀", "é", "\\", "\\n", "C:\\new", "\n", "\t", "a=1", "(x)", "]", "}", "<b>", "50%", "`",
)  # fmt: skip


def words(choose: random.Random) -> str:
    """A text that no format trims."""
    return "It" + "".join(" " + choose.choice(WORDS) for _ in range(choose.randint(0, 4))) + choose.choice("x?!")


def arguments(choose: random.Random, *, one: bool = False) -> dict[str, Any]:
    """Arguments of TOOL, of every kind that its schema has; or only the first of them."""
    values = {
        "queries": [words(choose) for _ in range(choose.randint(1, 3))],
        "comment": choose.choice(["", "12", "true", words(choose)]),
        "count": choose.randint(-5, 10**12),
        "ratio": choose.choice([None, 0.5, -1e-07, 3]),
        "strict": choose.choice([True, False, None]),
        "filter": {"year": choose.randint(0, 3), "words": [words(choose)], "deep": {"a": None, "b": False}},
    }
    others = [key for key in values if key != "queries" and choose.random() < 0.5]
    return {key: values[key] for key in ["queries", *([] if one else others)]}


def fuzzed(choose: random.Random, family: str) -> str:
    """Pieces of all families, sound calls of this one among them, now and then with a letter lost."""
    turn = "".join(choose.choice((*PIECES, SOUND[family])) for _ in range(choose.randint(0, 25)))
    place = choose.randint(0, len(turn))
    return turn[:place] + turn[place + choose.randint(0, 1) :]


def sound_turn(choose: random.Random, family: str) -> str:
    """One call or several as the family's models write them, with words before them or without."""
    given = [arguments(choose) for _ in range(choose.choice([1, 1, 2, 3]))]
    tag = "<|python_tag|>" if family == "llama3" else ""
    return choose.choice(["", "I look it up.\n"]) + tag + _written(family, given)


def _written(family: str, given: list[dict[str, Any]]) -> str:
    objects = [json.dumps(one, ensure_ascii=False) for one in given]
    match family:
        case "hermes":
            calls = [f'<tool_call>\n{{"name": "search", "arguments": {one}}}\n</tool_call>' for one in objects]
            return "\n".join(calls)
        case "llama3":
            return ";".join(f'{{"name": "search", "parameters": {one}}}' for one in objects)
        case "mistral":
            return "[TOOL_CALLS] [" + ", ".join(f'{{"name": "search", "arguments": {one}}}' for one in objects) + "]"
        case "deepseek":
            calls = [f"<｜tool▁call▁begin｜>search<｜tool▁sep｜>{one}<｜tool▁call▁end｜>" for one in objects]
            return f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"
        case "pythonic":
            calls = [", ".join(f"{key}={value!r}" for key, value in one.items()) for one in given]
            return "[" + ", ".join(f"search({one})" for one in calls) + "]"
    key, value, end = {
        "qwen_xml": ("<parameter={}>\n", "{}\n</parameter>\n", "</function>\n"),
        "glm": ("<arg_key>{}</arg_key>\n", "<arg_value>{}</arg_value>\n", ""),
    }[family]
    name = "<function=search>" if family == "qwen_xml" else "search"
    texts = [
        "".join(
            key.format(one) + value.format(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))
            for one, said in each.items()
        )
        for each in given
    ]
    return "\n".join(f"<tool_call>{name}\n{text}{end}</tool_call>" for text in texts)
