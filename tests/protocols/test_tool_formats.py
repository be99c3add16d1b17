"""Tool calls as families of models write them: read where they are sound, told apart where they are not."""

import json
import time

import pytest
from chat_helpers import call, raw_call, tool_tokenizer
from fakes import CHATML, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from search_rollout.protocols.tool_formats import FORMATS, ParsedTurn, ToolCall, is_format, parse_turn, tool_format

HERMES, LLAMA = FORMATS["hermes"], FORMATS["llama3"]
KENYA = {"queries": ["capital of Kenya"]}


def short_id(value: object) -> str:
    """A test id for a text that may be a megabyte."""
    return ascii(value)[1:-1][:40]


def llama_call(**arguments) -> str:
    return json.dumps({"name": "search", "parameters": arguments})


def read(form, text: str, **kwargs) -> list[tuple[str, dict] | None]:
    """The calls of a turn as (name, arguments), None for an unreadable one."""
    parsed = parse_turn(form, text, **kwargs)
    assert parsed is not None
    return [None if one.arguments is None else (one.name, one.arguments) for one in parsed.calls]


# --- Hermes -------------------------------------------------------------------------------------------------------


def test_one_call_is_read():
    text = '<tool_call>\n{"name": "search", "arguments": {"queries": ["capital of Kenya"]}}\n</tool_call>'
    written = '{"name": "search", "arguments": {"queries": ["capital of Kenya"]}}'
    assert HERMES.split(text) == ParsedTurn("", (ToolCall(written, "search", KENYA),))


def test_several_calls_are_read_in_their_order():
    text = call("a") + "\n" + call("b", "c") + call("d")
    assert [arguments["queries"] for _, arguments in read(HERMES, text)] == [["a"], ["b", "c"], ["d"]]


def test_a_turn_without_calls_is_content():
    assert HERMES.split(" It is Nairobi. \n") == ParsedTurn("It is Nairobi.", ())


def test_content_may_stand_around_and_between_calls():
    parsed = HERMES.split(f"First\n{call('a')} then {call('b')} at last")
    assert parsed.content.split() == ["First", "then", "at", "last"]
    assert len(parsed.calls) == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"search","arguments":{"queries":["capital of Kenya"]}}',
        ' {\n "arguments" : {"queries" : [ "capital of Kenya" ]},\n"name":"search"\t}\r\n',
        '{"name": "search", "arguments": "{\\"queries\\": [\\"capital of Kenya\\"]}"}',  # quoted once more
        '{"name": "search", "parameters": {"queries": ["capital of Kenya"]}}',
        '{"function": "search", "arguments": {"queries": ["capital of Kenya"]}}',
        '{"type": "function", "name": "search", "arguments": {"queries": ["capital of Kenya"]}, "id": 3}',
        '{"name": "search", "arguments": {"queries": ["\\u0063apital of Kenya"]}}',
    ],
    ids=["no-spaces", "odd-spaces", "double-encoded", "parameters", "function", "more-keys", "escapes"],
)
def test_the_same_call_is_read_however_it_is_written(text):
    assert read(HERMES, raw_call(text)) == [("search", KENYA)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "search",
        '{"name": "search", "arguments": {"queries": ["capital',
        '{"name": "search", "arguments": {}}}',
        "{'name': 'search', 'arguments': {}}",
        '{"name": "search", "arguments": {},}',
        '{"name": "search", "arguments": {}} {"name": "search", "arguments": {}}',
        "null",
        "3",
        '"search"',
        "[]",
        '[{"name": "search", "arguments": {}}]',
        "{}",
        '{"arguments": {"queries": ["a"]}}',
        '{"name": null, "arguments": {}}',
        '{"name": ["search"], "arguments": {}}',
        '{"name": {"name": "search"}, "arguments": {}}',
        '{"type": "function", "function": {"name": "search"}}',
        '{"name": "search", "arguments": null}',
        '{"name": "search", "arguments": ["a"]}',
        '{"name": "search", "arguments": "a"}',
        '{"name": "search", "arguments": "[\\"a\\"]"}',
        '{"name": "search", "arguments": "{\\"queries\\": "}',
        '{"name": "search", "arguments": "\\"{}\\""}',  # quoted twice more
        "[" * 100_000,
        '{"name":' * 100_000,
        '{"name": "search", "arguments": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
        '{"name": "search", "arguments": {"queries": ' + "9" * 5000 + "}}",  # Python reads no integer of that length
        "\x00\ud800",
    ],
    ids=short_id,
)
def test_anything_but_a_call_object_is_one_unreadable_call_that_keeps_its_text(text):
    (only,) = HERMES.split(raw_call(text)).calls
    assert only.arguments is None and only.name == ""
    assert only.text == text.strip()


def test_arguments_may_be_left_out():
    assert read(HERMES, raw_call('{"name": "list_sources"}')) == [("list_sources", {})]


def test_a_valid_call_next_to_a_broken_one_is_read():
    text = raw_call('{"name": "search", "argu') + call("a") + raw_call("{}") + call("b")
    assert [one and one[1]["queries"] for one in read(HERMES, text)] == [None, ["a"], None, ["b"]]


def test_a_call_that_the_end_of_the_turn_cuts_off_may_lack_its_end_tag():
    assert read(HERMES, call("a").removesuffix("\n</tool_call>")) == [("search", {"queries": ["a"]})]
    assert read(HERMES, call("a").removesuffix("}\n</tool_call>")) == [None]
    assert read(HERMES, call("a") + "<tool_call>") == [("search", {"queries": ["a"]}), None]


def test_a_lone_end_tag_is_content():
    assert HERMES.split("Nairobi</tool_call>") == ParsedTurn("Nairobi</tool_call>", ())


def test_a_call_is_closed_by_the_first_end_tag():
    assert read(HERMES, raw_call("{} <tool_call> {}")) == [None]
    assert read(HERMES, call("a") + "</tool_call>" + call("b")) == [
        ("search", {"queries": ["a"]}),
        ("search", {"queries": ["b"]}),
    ]


# --- Llama-3 JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "search", "parameters": {"queries": ["capital of Kenya"]}}',
        '{"type": "function", "name": "search", "parameters": {"queries": ["capital of Kenya"]}}',
        ' \n{ "name":"search","arguments":{"queries":["capital of Kenya"]}} ',
        '<|python_tag|>{"name": "search", "parameters": {"queries": ["capital of Kenya"]}}',
        '<|python_tag|>\n{"parameters": {"queries": ["capital of Kenya"]}, "name": "search"}',
        '{"name": "search", "parameters": "{\\"queries\\": [\\"capital of Kenya\\"]}"}',
        '{"function": "search", "parameters": {"queries": ["capital of Kenya"]}}',
        '{"name": "search", "parameters": {"queries": ["capital of Kenya"]}};',
    ],
)
def test_a_llama_turn_that_is_a_json_object_is_a_call(text):
    assert read(LLAMA, text) == [("search", KENYA)]
    assert LLAMA.split(text).content == ""


@pytest.mark.parametrize("gap", ["; ", ";", ", ", ",", "\n", " ;\n; ", "<|python_tag|>", ""])
def test_several_llama_calls_are_parted_by_semicolons_commas_or_space(gap):
    text = gap.join(llama_call(queries=[letter]) for letter in "abc")
    assert [arguments["queries"] for _, arguments in read(LLAMA, text)] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("before", ["I will search. ", "<|python_start|>I will search.<|python_end|>"])
@pytest.mark.parametrize("brackets", ["[]", ("", "")])
def test_llama_calls_may_be_a_list_and_may_follow_words_and_a_tag(before, brackets):
    calls = brackets[0] + ", ".join(llama_call(queries=[letter]) for letter in "ab") + brackets[1]
    parsed = LLAMA.split(before + "<|python_tag|>" * ("python" not in before) + calls)
    assert parsed.content == "I will search."
    assert [call.arguments for call in parsed.calls] == [{"queries": ["a"]}, {"queries": ["b"]}]
    assert read(LLAMA, calls) == [("search", {"queries": ["a"]}), ("search", {"queries": ["b"]})]


@pytest.mark.parametrize(
    "text",
    [
        "It is Nairobi.",
        "",
        '{"capital": "Nairobi"}',
        '["name"]',
        f"I will search: {llama_call(queries=['a'])}",
        "{",
        "<tool_call>{}</tool_call>",
    ],
)
def test_a_llama_turn_that_is_anything_else_is_content(text):
    assert LLAMA.split(text) == ParsedTurn(text.strip(), ())


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "search", "parameters": {"queries": ["cap', [None]),
        ('{"name": "search", "parameters": {}', [None]),
        ('{"name": "search", "parameters": []}', [None]),
        ('{"name": 3, "parameters": {}}', [None]),
        ('{"parameters": {}}', [None]),
        ("<|python_tag|>search('Kenya')", [None]),
        ("<|python_tag|>[]", [None]),
        ('<|python_tag|>[{"name": "search"}, 3]', [("search", {}), None]),
        (llama_call(queries=["a"]) + " and that is all", [("search", {"queries": ["a"]}), None]),
        (llama_call(queries=["a"]) + '; {"name": ', [("search", {"queries": ["a"]}), None]),
        (llama_call(queries=["a"]) + "; {}; " + llama_call(), [("search", {"queries": ["a"]}), None, ("search", {})]),
        ('{"name":' * 100_000, [None]),
    ],
    ids=short_id,
)
def test_unreadable_llama_calls_are_counted_as_calls(text, calls):
    assert read(LLAMA, text) == calls


# --- thinking -----------------------------------------------------------------------------------------------------

CALLS = [(HERMES, call("a")), (LLAMA, llama_call(queries=["a"]))]
BOTH = pytest.mark.parametrize(("form", "one"), CALLS, ids=["hermes", "llama3"])


@BOTH
def test_calls_after_a_thought_count(form, one):
    assert read(form, f"<think>I need it.</think>\n{one}") == [("search", {"queries": ["a"]})]


@BOTH
def test_calls_inside_a_thought_never_count(form, one):
    assert read(form, f"<think>{one}</think>It is Nairobi.") == []
    assert read(form, f"<think>{one}</think>\n{one}") == [("search", {"queries": ["a"]})]
    assert read(form, f"<think>x</think>{one}<think>y</think>Nairobi") == []  # the last thought rules


@BOTH
def test_the_thought_is_kept_as_content(form, one):
    parsed = parse_turn(form, f"<think>{one}</think>\nIt is Nairobi.")
    assert parsed is not None and parsed.content == f"<think>{one}</think>\nIt is Nairobi."


@BOTH
def test_a_turn_that_ends_inside_a_thought_has_no_calls(form, one):
    assert parse_turn(form, f"<think>{one}") is None
    assert parse_turn(form, f"<think>x</think>{one}<think>{one}") is None
    assert parse_turn(form, "<think>") is None


@BOTH
def test_a_thought_that_the_prompt_opened_has_to_be_closed(form, one):
    assert parse_turn(form, one, think_opened=True) is None
    assert read(form, f"I need it.</think>{one}", think_opened=True) == [("search", {"queries": ["a"]})]
    assert read(form, f"{one}</think>Nairobi", think_opened=True) == []
    assert parse_turn(form, f"x</think><think>{one}", think_opened=True) is None


# --- whatever comes -----------------------------------------------------------------------------------------------

PIECES = (
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>", "<|im_end|>", "\n", ";", "{", "}", "[", "]",
    '"', ",", ":", "\\", '{"name": "search", "arguments": ', '{"queries": ["a"]}', '"name"', '"arguments"',
    '"parameters"', "null", "1e999", "NaN", "-", "9" * 40, "\ud800", "\x00", "é", "漢",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(), max_size=4)), max_size=30).map("".join),
    st.sampled_from(sorted(FORMATS)),
    st.booleans(),
)
def test_no_text_makes_a_format_raise(text, name, think_opened):
    parsed = parse_turn(FORMATS[name], text, think_opened=think_opened)
    if parsed is None:
        assert "<think>" in text or think_opened
        return
    assert all(one.text in text for one in parsed.calls)
    assert all(isinstance(one.name, str) and isinstance(one.arguments, dict | None) for one in parsed.calls)
    if name == "hermes":
        assert len(parsed.calls) <= text.count("<tool_call>")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
WRITTEN = st.lists(st.tuples(st.text(max_size=8), st.dictionaries(st.text(max_size=5), VALUES, max_size=3)), max_size=4)


@settings(max_examples=200, deadline=None)
@given(WRITTEN, st.sampled_from([None, 0, 2]), st.booleans())
def test_every_call_that_is_written_is_read_again(calls, indent, escaped):
    """Whatever the name, the arguments and the spacing; `<` aside, which could close a call from within a string."""
    hermes = "\n".join(
        raw_call(json.dumps({"name": name, "arguments": arguments}, indent=indent, ensure_ascii=escaped))
        for name, arguments in calls
    )
    if hermes.count("<") == 2 * len(calls):
        assert read(HERMES, f"<think>x</think>{hermes}") == calls
    llama = "; ".join(
        json.dumps({"name": name, "parameters": arguments}, indent=indent, ensure_ascii=escaped)
        for name, arguments in calls
    )
    if "think>" not in llama:
        assert read(LLAMA, llama) == calls


MANY = 30_000


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * MANY,
        "<tool_call>{" * MANY,
        "</tool_call>" * MANY,
        "<tool_call></tool_call>" * (MANY // 4),
        "<" * (5 * MANY),
        "<think>" * MANY,
        "<think></think>" * MANY,
        "</think>" * MANY,
        "<tool_call>" + "[" * (5 * MANY),
        "<tool_call>" + '"' * (5 * MANY),
        "<tool_call>" + "\\" * (5 * MANY),
        "<tool_call>" + " " * (5 * MANY) + "x",
        '{"name":' * MANY,
        '{"name":' + " " * (5 * MANY),
        '{"name": "' + "\\" * (5 * MANY),
        '{"name": ' + "9" * (5 * MANY),
        '{"name": "s", "parameters": {}};' * (MANY // 4),
        "<|python_tag|>" + "[] " * (MANY // 4),
        "<|python_tag|>" + "{};" * (MANY // 4) + "{",
        "<|python_tag|>{}" + ";" * (5 * MANY) + "x",
    ],
    ids=short_id,
)
@pytest.mark.parametrize("form", [HERMES, LLAMA], ids=["hermes", "llama3"])
def test_a_huge_turn_is_read_at_once(form, text):
    began = time.process_time()
    parse_turn(form, text)
    assert time.process_time() - began < 1.0  # some ms; many seconds if it grew with the square


# --- which format -------------------------------------------------------------------------------------------------


def tokenizer_with(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


CALLS_LLAMA = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message['content'] or '' }}{% for call in message.tool_calls or [] %}"
    '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}',
)


def test_the_format_is_the_one_that_reads_what_the_chat_template_writes():
    assert tool_format(tool_tokenizer()).name == "hermes"
    assert tool_format(tokenizer_with(CALLS_LLAMA)).name == "llama3"


def test_a_tag_that_the_template_only_mentions_is_no_sign_of_a_format():
    mention = CALLS_LLAMA + "{{ '<tool_call></tool_call>' if false }}"
    assert tool_format(tokenizer_with(mention)).name == "llama3"


def test_where_tools_have_a_template_of_their_own_that_one_counts():
    templates = {"default": CHATML, "tool_use": tool_tokenizer().chat_template}
    assert tool_format(tokenizer_with(templates)).name == "hermes"


def test_a_format_that_is_named_is_taken_whatever_the_template_says():
    assert tool_format(tool_tokenizer(), "llama3") is LLAMA
    assert tool_format(tokenizer_with(CHATML), "hermes") is HERMES


def test_a_template_without_tool_calls_is_an_error_that_names_the_remedy():
    with pytest.raises(ValueError, match=r"leaves out an assistant's tool calls.*SEARCH_R1_TOOL_CALL_FORMAT=hermes, "):
        tool_format(tokenizer_with(CHATML))


def test_calls_that_no_format_reads_are_shown_in_the_error():
    template = CALLS_LLAMA.replace('{"name": ', "CALL ").replace('"}', "")
    with pytest.raises(ValueError, match=r"is in none of the formats known here: 'CALL .*queries.*sglang:NAME"):
        tool_format(tokenizer_with(template))


def test_calls_that_two_formats_read_are_an_error():
    ways = "{{ message['content'] or '' }}{% for call in message.tool_calls or [] %}{% if message.content is none %}"
    llama = '{"name": "search", "parameters": {{ call.function.arguments | tojson }}}'
    template = CHATML.replace(
        "{{ message['content'] }}",
        f"{ways}<tool_call>{llama}</tool_call>{{% else %}}{llama}{{% endif %}}{{% endfor %}}",
    )
    with pytest.raises(ValueError, match=r"can be read as hermes and as llama3"):
        tool_format(tokenizer_with(template))


@pytest.mark.parametrize("name", ["auto", "hermes"])
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        (
            CHATML.replace("{% for", "{{ raise_exception('no tools!') if messages[-1].role == 'tool' }}{% for", 1),
            "no tools!",
        ),
        (
            CHATML.replace("{{ message['content'] }}", "{{ message['content'] if message.role != 'tool' }}"),
            "leaves out",
        ),
        (CHATML.replace("{{ message['content'] }}", "{{ message['content'] | upper }}"), "changes an assistant"),
    ],
    ids=["no template", "no tool role", "drops tool messages", "changes what the assistant says"],
)
def test_a_template_in_which_no_tool_message_can_be_appended_is_refused_with_the_reason(template, reason, name):
    with pytest.raises(ValueError, match=reason):
        tool_format(tokenizer_with(template), name)


@pytest.mark.parametrize(
    ("name", "sound"), [("auto", True), ("glm", True), ("sglang:kimi_k2", True), ("sglang:", False)]
)
def test_the_setting_takes_a_family_or_one_of_sglangs_names(name, sound):
    assert is_format(name) is sound


def test_without_sglang_its_detectors_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sglang:lfm2 needs SGLang .*: install sglang there, or name"):
        tool_format(tool_tokenizer(), "sglang:lfm2")
