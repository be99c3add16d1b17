"""A response without a record, read by the protocol's own parser: answer and format of the whole trajectory."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_rollout.protocols.tool_formats import FORMATS
from search_rollout.samples.bare_text import _OBSERVATION, split, tool_record, xml_record


def search(query="capital of France"):
    return f"<think>I should look this up.</think>\n<search>{query}</search>"


def observe(text="Doc 1(Title: France) Its capital is Paris."):
    return f"\n\n<information>{text}</information>\n\n"


def answer(text="Paris"):
    return f"<think>I know it now.</think>\n<answer>{text}</answer>"


def is_valid(*parts, **kwargs):
    return xml_record("".join(parts), **kwargs).valid_format


# --- attempts to be paid for nothing ------------------------------------------------------------------------------


def test_answers_spread_over_several_tags_do_not_count():
    record = xml_record("<think>x</think><answer>Paris</answer><answer>Lyon</answer><answer>Nice</answer>")
    assert record.answer is None and not record.valid_format
    assert record.turns[0].fault == "several_answers"


def test_answers_sprayed_over_turns_break_the_format():
    assert not is_valid(answer("Lyon"), observe(), answer("Paris"))


def test_an_answer_in_a_retrieved_document_is_not_the_models():
    found = search() + observe("<answer>Paris</answer>")
    assert xml_record(found).answer is None
    assert xml_record(found + answer("Lyon")).answer == "Lyon"


def test_information_written_by_the_model_breaks_the_format():
    made_up = "<think>x</think><search>q</search><information>Paris</information><answer>Lyon</answer>"
    assert not is_valid(made_up)


def test_bare_text_has_no_passages():
    assert list(xml_record(search() + observe("Paris") + answer()).passages) == []


# --- the answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> Paris\n</answer>", "Paris"),
        ("<answer>Lyon</answer> no: <answer>Paris</answer>", None),
        ("<answer><answer>Paris</answer></answer>", None),
        ("<answer>Lyon<answer>Paris</answer></answer>", None),
        ("<answer>Nairobi<answer>", None),
        ("<answer>Paris</answer></answer>", "Paris"),
        ("<answer>Paris", None),
        ("Paris</answer>", None),
        ("The answer is Paris.", None),
        ("<ANSWER>Paris</ANSWER>", None),
        ("<answer></answer>", ""),
        ("", None),
        (None, None),
        ("<think><answer>Lyon</answer></think><answer>Paris</answer>", "Paris"),
        ("<answer>Paris</answer><think><answer>Lyon</answer></think>", None),  # an action comes behind the thought
        ("<answer>Paris</answer><think><answer>Lyon</answer>", None),  # the turn ends inside a thought
        ("<think><think>x</think><answer>Paris</answer>", "Paris"),  # thinking does not nest
        ("<answer>Pa<think>x</think>ris</answer>", None),  # thinking cuts an open answer off
        ("</think><answer>Paris</answer>", "Paris"),
        ("<think>x</think><search>q</search><answer>Paris</answer>", None),  # the rollout acts on the first action
    ],
)
def test_the_answer_is_what_a_rollout_would_act_on(text, expected):
    assert xml_record(text).answer == expected


def test_an_answer_does_not_span_an_observation():
    assert xml_record("<answer>Par" + observe() + "is</answer>").answer is None


def test_a_think_tag_in_the_prompt_hides_answers_of_the_first_turn_only():
    hidden = "Maybe <answer>Lyon</answer>"
    assert xml_record(hidden, think_opened=True).answer is None
    assert xml_record(search()[len("<think>") :] + observe() + hidden, think_opened=True).answer == "Lyon"


# --- the format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [answer()],
        [search(), observe(), answer()],
        [search(), observe(), search(), observe(""), answer()],
        [" \n<think></think> <answer></answer>\n\n"],
        ["<think>a < b, <b>bold</b>, <Answer></think><answer><i>x</i></answer>"],  # no protocol tags
        [search(), observe("<answer>x</answer><think>"), answer()],  # a document may hold anything
    ],
)
def test_turns_and_observations_by_turns_up_to_an_answer_are_valid(parts):
    assert is_valid(*parts)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [search()],
        [search(), observe()],
        [search(), answer()],
        [search(), observe(), observe(), answer()],
        [observe(), answer()],
        [answer(), observe()],
        [search(" \n"), observe(), answer()],
        ["I am not sure.", observe(), answer()],
    ],
)
def test_parts_out_of_order_are_invalid(parts):
    assert not is_valid(*parts)


@pytest.mark.parametrize(
    "turn",
    [
        "Paris",
        "<answer>x</answer>",
        "<think>x</think>",
        "<think>x<answer>x</answer>",
        "x</think><answer>x</answer>",
        "<think>x</think><think>y</think><answer>x</answer>",
        "<think><think>x</think></think><answer>x</answer>",
        "<think><search>q</search></think><answer>x</answer>",
        "<think>x</think><search>q</search><answer>x</answer>",
        "<think>x</think><answer>x</answer><search>q</search>",
        "<think>x</think><answer><answer>x</answer></answer>",
        "<think>x</think><answer>x</search>",
        "<think>x</think><answer>x</answer></answer>",
        "<think>x</think><information>i</information><answer>x</answer>",
        "<think>x</think><answer>x</information></answer>",
        "<answer>x</answer><think>x</think>",
        "first <think>x</think><answer>x</answer>",
        "<think>x</think> so <answer>x</answer>",
        "<think>x</think><answer>x</answer> done",
        "<|im_end|><think>x</think><answer>x</answer>",
    ],
)
def test_a_malformed_turn_is_invalid(turn):
    assert not is_valid(turn)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>", "\n<|im_end|>\n", "</s>", "<|eot_id|>"])
def test_an_end_of_turn_may_close_each_turn(end):
    assert is_valid(search() + end, observe(), answer() + end)


def test_a_think_tag_in_the_prompt_is_missing_from_the_first_turn_only():
    first = "I should look this up.</think><search>q</search>"
    assert is_valid(first, observe(), answer(), think_opened=True)
    assert not is_valid(first, observe(), answer())
    assert not is_valid(first, observe(), first, observe(), answer(), think_opened=True)
    assert not is_valid(search(), observe(), answer(), think_opened=True)  # <think> twice


# --- splitting ----------------------------------------------------------------------------------------------------


def parts_of(text):
    return list(split(text, _OBSERVATION))


def test_a_bare_response_splits_into_turns_and_observations():
    response = "<think>a</think><search>q</search>\n\n\n<information>d</information>\n\n\n<answer>x</answer>"
    assert parts_of(response) == [
        (True, "<think>a</think><search>q</search>\n"),  # two newlines are the environment's, not three
        (False, "\n\n<information>d</information>\n\n"),
        (True, "\n<answer>x</answer>"),
    ]


def test_blocks_without_the_environments_newlines_split_too():
    response = "<information>a</information><information>b</information>"
    assert [by_model for by_model, _ in parts_of(response)] == [False, False]


@pytest.mark.parametrize("text", ["x<information>y", "x</information>y"])
def test_an_unclosed_information_block_belongs_to_the_model(text):
    assert parts_of(text) == [(True, text)]


def test_no_response_has_no_turns():
    assert xml_record(None).turns == xml_record("").turns == []


# --- chat mode ----------------------------------------------------------------------------------------------------

CALL = '<think>x</think>\n<tool_call>\n{"name": "search", "arguments": {"queries": ["Kenya"]}}\n</tool_call>'
RESULT = "<|im_end|>\n<|im_start|>user\n<tool_response>\nNairobi\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


def test_a_chat_response_in_chatml_is_read_turn_by_turn():
    record = tool_record(CALL + RESULT + answer("Nairobi") + "<|im_end|>")
    assert [turn.action for turn in record.turns] == ["search", "answer"]
    assert record.valid_format and record.searched
    assert (record.answer, record.turns[0].queries) == ("Nairobi", ["Kenya"])


def test_a_chat_response_that_calls_an_unknown_tool_is_invalid():
    record = tool_record(CALL.replace('"search"', '"look"') + RESULT + answer("Nairobi"))
    assert record.answer == "Nairobi" and not record.valid_format


def test_a_template_that_opens_a_thought_in_every_turn_is_followed():
    opened = CALL.removeprefix("<think>") + RESULT + "<think>\n" + answer("Nairobi").removeprefix("<think>")
    assert tool_record(opened, think_opened=True).valid_format


# --- any text at all ----------------------------------------------------------------------------------------------

TAGS = [f"<{slash}{tag}>" for tag in ("think", "search", "information", "answer") for slash in ("", "/")]
CHATML = [
    "<|im_end|>",
    "<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>user\n",
    "<tool_call>",
    "<|im_start|>assistant\n",
]


@pytest.mark.parametrize(
    "soup",
    [*TAGS, *CHATML, " ", "\n", "<", "a ", "<information>\n\n", "<information></information>", "".join(TAGS)],
)
def test_a_megabyte_of_soup_is_read_within_a_second(soup):
    text = soup * (1_000_000 // len(soup))
    for read in (xml_record, tool_record):
        start = time.process_time()
        read(text)
        assert time.process_time() - start < 1.0


soups = st.lists(st.sampled_from([*TAGS, *CHATML, "Paris", " ", "\n\n"]) | st.text(max_size=3)).map("".join)
few = settings(max_examples=60, deadline=None)


@few
@given(soups)
def test_any_text_is_read_and_splits_into_itself(text):
    assert "".join(part for _, part in split(text, _OBSERVATION)) == text
    for read in (xml_record, tool_record):
        record = read(text)
        assert record.answer is not None or not record.valid_format


plain = st.text().filter(lambda text: not any(tag in text for tag in TAGS))


@few
@given(st.lists(st.tuples(plain.filter(bool), plain), max_size=4), plain.filter(bool))
def test_splitting_the_joined_parts_gives_them_back(rounds, last):
    parts = [part for turn, document in rounds for part in ((True, turn), (False, observe(document)))] + [(True, last)]
    if not any(text.endswith("\n") for by_model, text in parts if by_model):
        assert parts_of("".join(text for _, text in parts)) == parts


def test_a_chat_response_is_read_in_a_format_of_sglangs_too(monkeypatch):
    monkeypatch.setattr("search_rollout.protocols.tool_formats.SGLangFormat", lambda detector: FORMATS[detector])
    assert tool_record(CALL, tool_format="sglang:hermes").turns[0].queries == ["Kenya"]
