import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_em_format import exact_match, gold_answers, normalize_answer, score_trajectory

# --- the table ----------------------------------------------------------------------------------------------------

SCORES = {"format_score": 0.25, "final_format_score": 0.125, "retrieval_score": 0.5}  # exact in binary
FOUND = {"searched": True, "passages": ["Its capital is Paris."]}
MISSED = {"searched": True, "passages": ["It borders Spain."]}

RIGHT_VALID = ("Paris", {"valid_format": True, **FOUND})
RIGHT_INVALID = ("Paris", {"valid_format": False})
WRONG_VALID_RETRIEVED = ("Lyon", {"valid_format": True, **FOUND})
WRONG_VALID_MISSED = ("Lyon", {"valid_format": True, **MISSED})
WRONG_INVALID = ("Lyon", {"valid_format": False, **FOUND})
NO_ANSWER = (None, {"valid_format": False, **FOUND})


def score(outcome, **scores):
    answer, facts = outcome
    return score_trajectory(answer, ["Paris"], **facts, **scores)


@pytest.mark.parametrize(
    ("outcome", "reward"),
    [
        (RIGHT_VALID, 1.0),
        (RIGHT_INVALID, 0.75),  # 1.0 - format_score
        (WRONG_VALID_RETRIEVED, 0.75),  # format_score + retrieval_score
        (WRONG_VALID_MISSED, 0.25),  # format_score
        (WRONG_INVALID, 0.125),  # final_format_score; a retrieved document does not help
        (NO_ANSWER, 0.0),
    ],
)
def test_each_row_of_the_score_table_gives_its_reward(outcome, reward):
    assert score(outcome, **SCORES).reward == reward


@pytest.mark.parametrize(
    ("outcome", "reward"),
    [(RIGHT_VALID, 1.0), (RIGHT_INVALID, 1.0), (WRONG_VALID_RETRIEVED, 0.0), (WRONG_INVALID, 0.0), (NO_ANSWER, 0.0)],
)
def test_all_scores_at_zero_are_pure_exact_match(outcome, reward):
    assert score(outcome, format_score=0.0).reward == reward


def test_the_default_scores_reward_format_by_a_fifth_and_nothing_else():
    assert score(RIGHT_INVALID).reward == 0.8  # 1.0 - 0.2
    assert score(WRONG_VALID_RETRIEVED).reward == 0.2
    assert score(WRONG_INVALID).reward == 0.0


def test_a_score_explains_its_reward():
    assert score(WRONG_VALID_RETRIEVED)._asdict() == {
        "reward": 0.2,
        "exact_match": False,
        "valid_format": True,
        "answer": "Lyon",
        "retrieved_gold": True,
        "credit": 0.0,
    }


def test_an_empty_answer_is_given_but_never_right():
    scored = score_trajectory("", ["Paris", "", "The"], valid_format=False, **SCORES)
    assert (scored.answer, scored.exact_match, scored.reward) == ("", False, 0.125)


def test_answers_sprayed_within_one_answer_are_wrong():
    assert not score_trajectory("Paris, Lyon, Nice", ["Paris"], valid_format=True).exact_match


def test_a_document_copied_into_the_answer_is_wrong():
    assert not score_trajectory("Its capital is Paris.", ["Paris"], valid_format=True, **FOUND).exact_match


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
        ("Paris", "Paris", True),
        ("It lies in the New York area", "New York", True),
        ("Comparison", "Paris", False),
        ("A party", "art", False),
        ("New and York", "New York", False),
        ("a A a", "A", False),  # normalises to nothing
        ("", "A", False),
    ],
)
def test_a_gold_answer_counts_as_retrieved_only_as_whole_words(document, gold, retrieved):
    assert score_trajectory("x", [gold], valid_format=True, passages=[document]).retrieved_gold is retrieved


def test_a_gold_answer_is_not_retrieved_across_two_passages():
    assert not score_trajectory("x", ["New York"], valid_format=True, passages=["New", "York"]).retrieved_gold


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
def test_a_label_without_answers_has_no_gold_answers(label):
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


@pytest.mark.parametrize("soup", [" ", "\n", "a ", "the ", "!", "Paris ", "<answer>"])
def test_a_megabyte_of_soup_is_scored_within_a_second(soup):
    text = soup * (1_000_000 // len(soup))
    start = time.process_time()
    for metric in ("em", "f1", "sub_em"):
        score_trajectory(text, ["Paris"], valid_format=True, passages=[text], answer_metric=metric)
    assert time.process_time() - start < 3.0


texts = st.lists(st.text(), max_size=3)
eighths = st.integers(0, 4).map(lambda n: n / 8)  # so that two of them add up to at most 1
few = settings(max_examples=60, deadline=None)


@few
@given(
    st.none() | st.text(), st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3), eighths, eighths, eighths
)
def test_any_trajectory_is_scored_between_zero_and_one(answer, golds, passages, form, final, retrieval):
    scored = score_trajectory(
        answer,
        golds,
        valid_format=answer is not None,
        passages=passages,
        format_score=form,
        final_format_score=final,
        retrieval_score=retrieval,
    )
    assert 0.0 <= scored.reward <= 1.0
    assert scored.answer is not None or (scored.reward, scored.valid_format) == (0.0, False)


@few
@given(st.text())
def test_any_string_is_a_label(text):
    assert all(isinstance(gold, str) for gold in gold_answers(text))


gold_texts = (st.text() | st.sampled_from(["A", "!!!", "the", "Ⅷ", "Straße", "\u200b"])).filter(str.strip)


@few
@given(st.lists(gold_texts, min_size=1, max_size=3), st.data())
def test_any_gold_answer_in_the_right_format_earns_one(golds, data):
    gold = data.draw(st.sampled_from(golds))
    assert score_trajectory(gold, golds, valid_format=True).reward == 1.0


@few
@given(st.lists(st.text(), max_size=4))
def test_golds_survive_json_and_repr(golds):
    label = {"ground_truth": {"target": golds}}
    assert gold_answers(json.dumps(label)) == golds
    assert gold_answers(repr(label)) == golds
    assert gold_answers(repr({"ground_truth": {"target": np.array(golds, dtype=object)}})) == golds
