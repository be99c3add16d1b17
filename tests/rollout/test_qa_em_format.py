import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_em_format import (
    Segment,
    exact_match,
    extract_answer,
    gold_answers,
    is_valid_format,
    normalize_answer,
    score_trajectory,
    split_response,
)


def model(text):
    return Segment("model", text)


def search(query="capital of France"):
    return model(f"<think>I should look this up.</think>\n<search>{query}</search>")


def observe(text="Doc 1(Title: France) Its capital is Paris."):
    return Segment("environment", f"\n\n<information>{text}</information>\n\n", "observation")


def answer(text="Paris"):
    return model(f"<think>I know it now.</think>\n<answer>{text}</answer>")


CORRECTION = Segment("environment", "\nThat was no valid action. Search or answer.\n", "correction")


# --- the table ----------------------------------------------------------------------------------------------------

SCORES = {"format_score": 0.25, "final_format_score": 0.125, "retrieval_score": 0.5}  # exact in binary

RIGHT_VALID = [search(), observe(), answer("Paris")]
RIGHT_INVALID = [model("<answer>Paris</answer>")]  # no thinking
WRONG_VALID_RETRIEVED = [search(), observe("Its capital is Paris."), answer("Lyon")]
WRONG_VALID_MISSED = [search(), observe("It borders Spain."), answer("Lyon")]
WRONG_INVALID = [search(), observe("Its capital is Paris."), model("<answer>Lyon</answer>")]
NO_ANSWER = [search(), observe("Its capital is Paris.")]


@pytest.mark.parametrize(
    ("segments", "reward"),
    [
        (RIGHT_VALID, 1.0),
        (RIGHT_INVALID, 0.75),  # 1.0 - format_score
        (WRONG_VALID_RETRIEVED, 0.75),  # format_score + retrieval_score
        (WRONG_VALID_MISSED, 0.25),  # format_score
        (WRONG_INVALID, 0.125),  # final_format_score; a retrieved document does not help
        (NO_ANSWER, 0.0),
        ([], 0.0),
        (None, 0.0),
    ],
)
def test_each_row_of_the_score_table_gives_its_reward(segments, reward):
    assert score_trajectory(segments, ["Paris"], **SCORES).reward == reward


@pytest.mark.parametrize(
    ("segments", "reward"),
    [(RIGHT_VALID, 1.0), (RIGHT_INVALID, 1.0), (WRONG_VALID_RETRIEVED, 0.0), (WRONG_INVALID, 0.0), (NO_ANSWER, 0.0)],
)
def test_all_scores_at_zero_are_pure_exact_match(segments, reward):
    assert score_trajectory(segments, ["Paris"], format_score=0.0).reward == reward


def test_the_default_scores_reward_format_by_a_fifth_and_nothing_else():
    assert score_trajectory(RIGHT_INVALID, ["Paris"]).reward == 0.8  # 1.0 - 0.2
    assert score_trajectory(WRONG_VALID_RETRIEVED, ["Paris"]).reward == 0.2
    assert score_trajectory(WRONG_INVALID, ["Paris"]).reward == 0.0


def test_a_score_explains_its_reward():
    assert score_trajectory(WRONG_VALID_RETRIEVED, ["Paris"])._asdict() == {
        "reward": 0.2,
        "exact_match": False,
        "valid_format": True,
        "answer": "Lyon",
        "retrieved_gold": True,
        "credit": 0.0,
    }


def test_an_empty_answer_is_given_but_never_right():
    score = score_trajectory([model("<answer> </answer>")], ["Paris", "", "The"], **SCORES)
    assert (score.answer, score.exact_match, score.reward) == ("", False, 0.125)


# --- attempts to be paid for nothing ------------------------------------------------------------------------------


def test_answers_sprayed_over_several_tags_are_none():
    spray = "<think>x</think><answer>Paris</answer><answer>Lyon</answer><answer>Nice</answer>"
    for gold in ("Paris", "Lyon", "Nice"):
        assert score_trajectory([model(spray)], [gold]).reward == 0.0


def test_answers_sprayed_within_one_tag_are_wrong():
    assert not score_trajectory([answer("Paris, Lyon, Nice")], ["Paris"]).exact_match


def test_answers_sprayed_over_turns_break_the_format():
    assert not is_valid_format([answer("Lyon"), answer("Paris")])
    assert not is_valid_format([answer("Lyon"), observe(), answer("Paris")])


def test_a_document_copied_into_the_answer_is_wrong():
    document = "Its capital is Paris."
    assert not score_trajectory([search(), observe(document), answer(document)], ["Paris"]).exact_match


def test_an_answer_in_a_retrieved_document_is_not_the_models():
    segments = [search(), observe("<answer>Paris</answer>")]
    assert score_trajectory(segments, ["Paris"]).answer is None
    assert extract_answer([*segments, answer("Lyon")]) == "Lyon"


def test_an_answer_in_a_correction_is_not_the_models():
    assert extract_answer([Segment("environment", "Write <answer>Paris</answer>.", "correction")]) is None


def test_text_of_unknown_origin_is_not_the_models():
    assert extract_answer([{"text": "<answer>Paris</answer>"}]) is None


def test_information_written_by_the_model_breaks_the_format_and_counts_as_no_retrieval():
    made_up = model("<think>x</think><search>q</search><information>Paris</information><answer>Lyon</answer>")
    score = score_trajectory([made_up], ["Paris"])
    assert not score.valid_format
    assert not score.retrieved_gold


# --- the answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> Paris\n</answer>", "Paris"),
        ("<answer>Lyon</answer> no: <answer>Paris</answer>", None),
        ("<answer><answer>Paris</answer></answer>", None),
        ("<answer>Lyon<answer>Paris</answer></answer>", None),
        ("<answer>Paris</answer></answer>", "Paris"),
        ("<answer>Paris", None),
        ("Paris</answer>", None),
        ("The answer is Paris.", None),
        ("<ANSWER>Paris</ANSWER>", None),
        ("<answer></answer>", ""),
        ("", None),
        (None, None),
        ("<think><answer>Lyon</answer></think><answer>Paris</answer>", "Paris"),
        ("<answer>Paris</answer><think><answer>Lyon</answer></think>", "Paris"),
        ("<answer>Paris</answer><think><answer>Lyon</answer>", "Paris"),  # unclosed thinking hides the rest
        ("<think><think>x</think><answer>Paris</answer>", "Paris"),  # thinking does not nest
        ("<answer>Pa<think>x</think>ris</answer>", None),  # thinking cuts an open answer off
        ("</think><answer>Paris</answer>", "Paris"),
    ],
)
def test_the_answer_is_the_one_closed_one_outside_thinking(text, answer):
    assert extract_answer([model(text)]) == answer


def test_unclosed_thinking_ends_with_its_segment():
    assert extract_answer([model("<think>never closed"), CORRECTION, model("<answer>Paris</answer>")]) == "Paris"


def test_an_answer_does_not_span_segments():
    assert extract_answer([model("<answer>Par"), observe(), model("is</answer>")]) is None


def test_a_think_tag_in_the_prompt_hides_answers_of_the_first_turn_only():
    hidden = model("Maybe <answer>Lyon</answer>")
    assert extract_answer([hidden], think_opened=True) is None
    assert extract_answer([observe(), hidden], think_opened=True) is None
    assert extract_answer([hidden, CORRECTION, model("<answer>Paris</answer>")], think_opened=True) == "Paris"
    assert score_trajectory([hidden], ["Lyon"], think_opened=True).reward == 0.0


# --- exact match --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("U.S.A.", "usa"),
        ("an apple a day", "apple day"),
        ("Theatre Anna", "theatre anna"),  # articles only as whole words
        ("São Tomé", "são tomé"),
        ("¿Qué?", "¿qué"),  # punctuation is ASCII's, as in SQuAD
        ("The", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_normalisation_is_squads(text, normalized):
    assert normalize_answer(text) == normalized


def test_any_one_gold_answer_suffices():
    assert exact_match("the paris.", ["Lyon", "Paris"])
    assert not exact_match("Paris, France", ["Lyon", "Paris"])
    assert not exact_match("Paris", [])
    assert not exact_match(None, ["None"])


@pytest.mark.parametrize("gold", ["A", "the", "!!!", "C++", "Ⅷ", "İstanbul", "Straße", " 42 "])
def test_a_gold_answer_accepts_itself_in_any_case(gold):
    assert exact_match(gold, [gold])
    assert exact_match(gold.lower(), [gold])


def test_a_gold_answer_that_normalises_to_nothing_accepts_only_itself():
    assert exact_match(" a ", ["A"])
    for other in ["", "the", "!!!", "B"]:
        assert not exact_match(other, ["A"])


def test_a_blank_gold_answer_accepts_nothing():
    assert not exact_match("", [""])
    assert not exact_match(" ", ["\n"])
    assert not exact_match("the", [""])


# --- retrieval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "gold", "retrieved"),
    [
        ("Its capital is Paris.", "paris", True),
        ("Paris", "Paris", True),  # at both ends, against the tags
        ("It lies in the New York area", "New York", True),
        ("Comparison", "Paris", False),
        ("A party", "art", False),
        ("New and York", "New York", False),
        ("a A a", "A", False),  # normalises to nothing
        ("", "A", False),
    ],
)
def test_a_gold_answer_is_retrieved_when_it_stands_as_whole_words(document, gold, retrieved):
    assert score_trajectory([search(), observe(document)], [gold]).retrieved_gold is retrieved


def test_only_observations_count_as_retrieval():
    correction = Segment("environment", "Paris", "correction")
    assert not score_trajectory([search("Paris"), correction, answer("Paris")], ["Paris"]).retrieved_gold


# --- the format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segments",
    [
        [answer()],
        [search(), observe(), answer()],
        [search(), observe(), search(), observe(""), answer()],
        [model(" \n<think></think> <answer></answer>\n\n")],
        [model("<think>a < b, <b>bold</b>, <Answer></think><answer><i>x</i></answer>")],  # no protocol tags
        [search(), observe("<answer>x</answer></information><think>"), answer()],  # a document may hold anything
    ],
)
def test_turns_and_observations_by_turns_up_to_an_answer_are_valid(segments):
    # None of these holds a chat-template marker such as <|im_start|>: the response never contains the prompt.
    assert is_valid_format(segments)


@pytest.mark.parametrize(
    "segments",
    [
        None,
        [],
        [model("")],
        [model(None)],
        [search()],
        [search(), observe()],
        [search(), answer()],
        [search(), observe(), observe(), answer()],
        [search(), observe(), model("\n"), answer()],
        [observe(), answer()],
        [Segment("environment", answer().text, "observation")],
        [answer(), observe()],
        [answer(), model("\n")],
        [search(), CORRECTION, answer()],
        [model("I am not sure."), CORRECTION, answer()],
        [search(" \n"), observe(), answer()],
    ],
)
def test_segments_out_of_order_are_invalid(segments):
    assert not is_valid_format(segments)


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
        "<think>x</think><answer>x</answer><|im_end|>",  # not named as an end of turn
    ],
)
def test_a_malformed_turn_is_invalid(turn):
    assert not is_valid_format([model(turn)])


def test_a_named_end_of_turn_may_close_each_turn_once():
    ends = ("<|im_end|>", "<|endoftext|>")
    turns = [model(search().text + "<|endoftext|>"), observe(), model(answer().text + "\n<|im_end|>\n")]
    assert is_valid_format(turns, end_of_turn=ends)
    assert score_trajectory(turns, ["Paris"], end_of_turn=ends).reward == 1.0
    assert not is_valid_format([model(answer().text + "<|im_end|><|im_end|>")], end_of_turn=ends)
    assert not is_valid_format([model("<|im_end|>" + answer().text)], end_of_turn=ends)


def test_a_think_tag_in_the_prompt_is_missing_from_the_first_turn_only():
    first = model("I should look this up.</think><search>q</search>")
    assert is_valid_format([first, observe(), answer()], think_opened=True)
    assert not is_valid_format([first, observe(), answer()])
    assert not is_valid_format([first, observe(), first, observe(), answer()], think_opened=True)
    assert not is_valid_format([search(), observe(), answer()], think_opened=True)  # <think> twice
    assert score_trajectory([first, observe(), answer()], ["Paris"], think_opened=True).reward == 1.0


# --- segments -----------------------------------------------------------------------------------------------------


def test_segments_as_dicts_or_through_json_score_as_before():
    expected = score_trajectory(RIGHT_VALID, ["Paris"])
    dicts = [segment._asdict() for segment in RIGHT_VALID]
    assert score_trajectory(dicts, ["Paris"]) == expected
    assert score_trajectory(json.loads(json.dumps(dicts)), ["Paris"]) == expected
    assert score_trajectory(json.loads(json.dumps(RIGHT_VALID)), ["Paris"]) == expected  # lists


def test_segments_may_carry_further_fields():
    expected = score_trajectory(RIGHT_VALID, ["Paris"])
    assert score_trajectory([(*segment, 12) for segment in RIGHT_VALID], ["Paris"]) == expected
    assert score_trajectory([segment._asdict() | {"tokens": 12} for segment in RIGHT_VALID], ["Paris"]) == expected


def test_segments_with_missing_parts_do_not_raise():
    segments = [{}, {"source": "model"}, {"source": None, "text": None, "kind": None}, model(None)]
    assert score_trajectory(segments, ["Paris"], think_opened=True).reward == 0.0


def test_a_bare_response_splits_into_turns_and_observations():
    response = "<think>a</think><search>q</search>\n\n\n<information>d</information>\n\n\n<answer>x</answer>"
    assert split_response(response) == [
        Segment("model", "<think>a</think><search>q</search>\n"),  # two newlines are the environment's, not three
        Segment("environment", "\n\n<information>d</information>\n\n", "observation"),
        Segment("model", "\n<answer>x</answer>"),
    ]


def test_blocks_without_the_environments_newlines_split_too():
    response = "<information>a</information><information>b</information>"
    assert [segment.source for segment in split_response(response)] == ["environment", "environment"]


def test_an_unclosed_information_block_stays_the_models():
    assert split_response("x<information>y") == [Segment("model", "x<information>y")]
    assert split_response("x</information>y") == [Segment("model", "x</information>y")]


def test_no_response_has_no_segments():
    assert split_response(None) == split_response("") == []


# --- labels -------------------------------------------------------------------------------------------------------

GOLDS = ["Île de la Cité", "L'Île", 'the "island"', """both ' and \""""]
LABEL = {"ground_truth": {"target": GOLDS}, "style": "rule"}


@pytest.mark.parametrize(
    "label",
    [
        LABEL,
        {"target": GOLDS},
        {"ground_truth": GOLDS},
        GOLDS,
        tuple(GOLDS),
        np.array(GOLDS),
        np.array(GOLDS, dtype=object),
        {"ground_truth": {"target": np.array(GOLDS, dtype=object)}},
        {"target": np.array([np.array(GOLDS, dtype=object), None], dtype=object)},
        json.dumps(LABEL),
        json.dumps(LABEL, ensure_ascii=False, indent=2),
        json.dumps(GOLDS),
        repr(LABEL),
        repr({"ground_truth": {"target": np.array(GOLDS, dtype=object)}, "style": "rule"}),
        repr({"ground_truth": {"target": [np.str_(gold) for gold in GOLDS]}}),
        repr({"target": np.array([np.str_(gold) for gold in GOLDS], dtype=object)}),
        f"\n {LABEL!r}\n",
    ],
    ids=range(17),
)
def test_gold_answers_are_found_in_every_shape_of_label(label):
    assert gold_answers(label) == GOLDS


def test_gold_answers_survive_the_repr_of_an_array_with_quotes_and_brackets():
    label = """{'ground_truth': {'target': array(['a', "b's", 'array([1])', '\\'"'], dtype=object)}}"""
    assert gold_answers(label) == ["a", "b's", "array([1])", "'\""]


def test_gold_answers_survive_a_repr_that_numpy_wraps_over_lines():
    golds = [f"a rather long answer, number {n}" for n in range(20)]
    label = repr({"target": np.array(golds, dtype=object)})
    assert "\n" in label
    assert gold_answers(label) == golds


@pytest.mark.parametrize(
    "text",
    ["Paris", "1984", "", " 42 ", "null", "{", "[Chorus]", "{x} and", "[1, 2", "{'a', 'b'}", "{[]: 1}", "[sin(0)]"],
)
def test_a_plain_string_is_itself_the_gold_answer(text):
    assert gold_answers(text) == [text]
    assert gold_answers({"target": text}) == [text]


def test_a_target_string_is_never_parsed():
    assert gold_answers({"target": '["a", "b"]'}) == ['["a", "b"]']
    assert gold_answers(['{"target": "a"}']) == ['{"target": "a"}']


@pytest.mark.parametrize(
    "label", [None, [], {}, {"target": None}, {"ground_truth": None}, np.array([]), '{"target": []}']
)
def test_a_label_without_answers_gives_none(label):
    assert gold_answers(label) == []


def test_answers_that_are_not_strings_become_strings():
    assert gold_answers([1984, 0.5, True, None, np.int64(7)]) == ["1984", "0.5", "True", "7"]
    assert gold_answers({"target": 1984}) == ["1984"]
    assert gold_answers('{"target": 1984}') == ["1984"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" + "-" * 100_000 + "1]",
        "[" * 150 + "]" * 150,
        "[" + "9" * 10_000 + "]",
        "[0x" + "f" * 9_999 + "]",
    ],
)
def test_a_label_too_odd_to_parse_does_not_raise(text):
    assert isinstance(gold_answers(text), list)


# --- any text at all ----------------------------------------------------------------------------------------------

TAGS = [f"<{slash}{tag}>" for tag in ("think", "search", "information", "answer") for slash in ("", "/")]


@pytest.mark.parametrize(
    "soup",
    [*TAGS, " ", "\n", "<", "a ", "<information>\n\n", "<information></information>", "<think></think>", "".join(TAGS)],
)
def test_a_megabyte_of_soup_is_scored_within_a_second(soup):
    text = soup * (1_000_000 // len(soup))
    start = time.process_time()
    score_trajectory([model(text)], ["Paris"])
    score_trajectory(split_response(text), ["Paris"])
    assert time.process_time() - start < 1.0


pieces = st.sampled_from([*TAGS, "Paris", "Lyon", " ", "\n\n", "<|im_end|>"]) | st.text(max_size=3)
soups = st.lists(pieces).map("".join)
trajectories = st.none() | st.lists(
    st.builds(Segment, st.sampled_from(["model", "environment"]), soups, st.sampled_from(["turn", "observation", "x"]))
    | st.sampled_from([search(), observe(), answer(), CORRECTION, model(None)])
    | st.fixed_dictionaries({}, optional={"source": st.none() | soups, "text": st.none() | soups, "kind": st.none()}),
    max_size=6,
)
eighths = st.integers(0, 4).map(lambda n: n / 8)  # so that two of them add up to at most 1
few = settings(max_examples=60, deadline=None)


@few
@given(trajectories, st.lists(soups, max_size=3), eighths, eighths, eighths, st.booleans())
def test_any_trajectory_is_scored_between_zero_and_one(segments, golds, form, final, retrieval, think_opened):
    score = score_trajectory(
        segments,
        golds,
        format_score=form,
        final_format_score=final,
        retrieval_score=retrieval,
        think_opened=think_opened,
        end_of_turn=["<|im_end|>"],
    )
    assert 0.0 <= score.reward <= 1.0
    assert score.answer is not None or (score.reward, score.valid_format) == (0.0, False)


@few
@given(soups)
def test_any_string_is_a_label_and_a_response(text):
    assert all(isinstance(gold, str) for gold in gold_answers(text))
    assert "".join(segment.text for segment in split_response(text)) == text
    score_trajectory(split_response(text), [text])


def without_tags(text):  # hypothesis finds the tags in the module's source and tries them
    return not any(tag in text for tag in TAGS)


plain_texts = st.text().filter(without_tags)
gold_texts = (plain_texts | st.sampled_from(["A", "!!!", "the", "Ⅷ", "Straße", "\u200b"])).filter(str.strip)


@few
@given(st.lists(gold_texts, min_size=1, max_size=3), st.data())
def test_any_gold_answer_in_the_canonical_format_earns_one(golds, data):
    gold = data.draw(st.sampled_from(golds))
    segments = [search(), observe(), answer(gold)]
    assert score_trajectory(segments, golds).reward == 1.0
    response = "".join(segment.text for segment in segments)
    assert score_trajectory(split_response(response), golds).reward == 1.0


@few
@given(st.lists(st.tuples(plain_texts.filter(bool), plain_texts), max_size=4), plain_texts.filter(bool))
def test_splitting_the_joined_segments_gives_them_back(rounds, last):
    segments = [segment for turn, document in rounds for segment in (model(turn), observe(document))] + [model(last)]
    assert split_response("".join(segment.text for segment in segments)) == segments


@few
@given(st.lists(st.text(), max_size=4))
def test_golds_survive_json_and_repr(golds):
    label = {"ground_truth": {"target": golds}}
    assert gold_answers(json.dumps(label)) == golds
    assert gold_answers(repr(label)) == golds
    assert gold_answers(repr({"ground_truth": {"target": np.array(golds, dtype=object)}})) == golds
