"""Presets: what each pays, that a gold answer always gets the most, and that nobody is paid for guessing widely."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_fixtures import ROWS

import generate_with_search
from qa_em_format import answer_credit, exact_match, f1, normalize_answer, score_trajectory, sub_em
from search_rollout.config import REWARD_PRESETS, ConfigError, load_config
from search_rollout.samples.bare_text import tool_record, xml_record
from search_rollout.samples.record import Span, Turn

STYLES = {"xml": xml_record, "tools": tool_record}
DOCUMENT = "Doc 1(Title: Candidates) Zanzibar, {gold}, Quito and Lhasa are among those that come to mind."
cases = pytest.mark.parametrize(
    ("preset", "style"),
    list(itertools.product(REWARD_PRESETS, STYLES)),
)
GOLDS = [row.golds for row in ROWS]


def reward(turn, golds, preset, style="xml", searched=True, document=DOCUMENT):
    """What a trajectory earns that searches once and ends in this turn; without searching, the turn alone."""
    record = STYLES[style](turn)
    passages = []
    if searched:
        record.spans = [Span("turn", 0), Span("observation", 0), *record.spans]
        record.turns = [Turn("search", queries=["q"]), *record.turns]
        passages = [document.format(gold=golds[0])]
    return score_trajectory(
        record.answer,
        golds,
        valid_format=record.valid_format,
        searched=record.searched,
        passages=passages,
        **REWARD_PRESETS[preset]._asdict(),
    ).reward


def answering(text):
    return f"<think>I know it now.</think><answer>{text}</answer>"


@cases
@pytest.mark.parametrize("searched", [True, False])
def test_a_gold_answer_gets_the_top_score(preset, style, searched):
    for golds in GOLDS:
        for gold in golds:
            assert reward(answering(gold), golds, preset, style, searched) == 1.0
            assert reward(answering(f" {gold.upper()}\n"), [gold], preset, style, searched) == 1.0


WRONG = "Zanzibar"  # in no fixture's golds


@cases
def test_a_dishonest_answer_earns_no_more_than_an_honest_wrong_one(preset, style):
    for golds in GOLDS:
        honest = reward(answering(WRONG), golds, preset, style)
        assert honest < 1.0
        for turn in itertools.chain.from_iterable(map(adversarial, golds)):
            assert reward(turn, golds, preset, style) <= honest, turn


def adversarial(gold):
    """Turns that hold the gold answer, or none, and do not give it as the answer."""
    sprays = [
        f"{gold}, {WRONG}",
        f"{WRONG} {gold}",
        f"{gold} or {WRONG}",
        f"{gold}/{WRONG}/Quito",
        f"{gold}; not {WRONG}",
    ]
    sprays += [f"{gold} {gold} {WRONG}", f"{gold} no yes 1 2 3", f"{gold} 1999", f"{WRONG} (also known as {gold})"]
    copies = [DOCUMENT.format(gold=gold), DOCUMENT.format(gold=gold) * 30]
    yield from map(answering, [*sprays, *copies])
    yield answering("")
    yield answering(" ")
    yield ""
    yield "<think></think>"
    yield f"<think>It is {gold}.</think>"
    yield f"<think><answer>{gold}</answer></think>"
    yield answering(f"<answer>{gold}</answer>")
    yield answering(f"{WRONG}<answer>{gold}")
    yield answering(f"<think>{gold}</think>")
    yield answering(gold) + f"<answer>{WRONG}</answer>"
    yield f"<think>x</think><answer>{WRONG}</answer><answer>{gold}</answer>"
    yield f"<think>x</think><answer>{gold}</answer><answer>{gold}</answer>"
    yield f"<think>x</think><answer>{WRONG}<answer>{gold}</answer></answer>"
    yield f"<think>x</think><answer>{WRONG}</answer><think>y</think><answer>{gold}</answer>"
    yield f"<think>x</think><search>{gold}</search><information>{gold}</information><answer>{WRONG}</answer>"


words = st.lists(st.sampled_from("ada bell curie dirac euler of in the it 1 2".split()), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(gold=words, other=st.sampled_from(["fermi", "gauss", "99", "or", "and", "no"]), before=words, after=words)
def test_an_answer_with_a_word_that_may_name_something_else_counts_as_wrong(gold, other, before, after):
    said = " ".join([*before, other, *after])
    for metric in ("em", "f1", "sub_em"):
        assert answer_credit(said, [" ".join(gold)], metric) == 0.0


@pytest.mark.parametrize(
    ("answer", "gold", "f1_credit", "sub_em_credit"),
    [
        ("Bill Gates", "Bill Gates", 1, 1),
        ("the Gates", "Bill Gates", 2 / 3, 0),  # precision 1/1, recall 1/2
        ("William Gates", "Bill Gates", 0, 0),
        ("Gates Gates", "Bill Gates", 0, 0),
        ("of", "University of Oxford", 0, 0),  # a word that names nothing
        ("It is in Paris.", "Paris", 0, 1),
        ("The answer is: Paris", "Paris", 0, 1),
        ("Paris, France", "Paris", 0, 0),
        ("It is The Who", "Who", 0, 1),
        ("is it in", "It", 0, 0),  # such a gold answer counts by itself only
        ("Comparison", "Paris", 0, 0),
        ("", "Paris", 0, 0),
        (None, "Paris", 0, 0),
        ("The", "Paris", 0, 0),
        ("in " * 200 + "Paris", "Paris", 0, 0),
    ],
)
def test_credit_is_given_for_a_part_of_the_gold_answer_or_for_nothing_around_it(answer, gold, f1_credit, sub_em_credit):
    golds = ["Lhasa Quito", gold]
    assert answer_credit(answer, golds, "em") == exact_match(answer, golds)
    assert answer_credit(answer, golds, "f1") == pytest.approx(f1_credit)
    assert answer_credit(answer, golds, "sub_em") == sub_em_credit


def test_a_partly_right_answer_scores_between_wrong_and_right():
    # credit 2/3: from .2 to 1 in a valid format; from 0 to .8 in an invalid one
    assert reward(answering("Gates"), ["Bill Gates"], "f1") == pytest.approx(0.2 + 0.8 * 2 / 3)
    assert reward("<answer>Gates</answer>", ["Bill Gates"], "f1") == pytest.approx(0.8 * 2 / 3)


OUTCOMES = {  # a last turn, searched, gold in the document → reward by preset, in the order of the table
    "right": (answering("Quito"), True, False, [1.0] * 7),
    "right, not searched": (answering("Quito"), False, False, [1.0] * 7),
    "right, invalid": ("<answer>Quito</answer>", True, False, [0.8, 1.0, 0.8, 0.8, 0.8, 0.8, 0.8]),
    "wrong": (answering(WRONG), True, False, [0.2, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2]),
    "wrong, retrieved": (answering(WRONG), True, True, [0.2, 0.0, 0.2, 0.2, 0.2, 0.3, 0.2]),
    "wrong, not searched": (answering(WRONG), False, False, [0.2, 0.0, 0.2, 0.2, 0.2, 0.2, 0.0]),
    "wrong, invalid": (f"<answer>{WRONG}</answer>", True, True, [0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0]),
    "no answer": ("<think>x</think>", True, True, [0.0] * 7),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_preset_pays_what_its_row_says(outcome):
    turn, searched, retrieved, rewards = OUTCOMES[outcome]
    document = "Quito." if retrieved else "Nothing."
    assert list(REWARD_PRESETS) == "default paper paper_v03 f1 sub_em retrieval_bonus no_search_penalty".split()
    paid = [reward(turn, ["Quito"], preset, searched=searched, document=document) for preset in REWARD_PRESETS]
    assert paid == pytest.approx(rewards)


# --- choosing one -------------------------------------------------------------------------------------------------

LOCAL = {"SEARCH_BACKEND": "local"}


class Args:
    def __init__(self, **values):
        self.__dict__.update(values)


def scores(environment=None, table=None, **args):
    table = {**generate_with_search.SEARCH_R1_CONFIGS, **(table or {})}
    config = load_config(table, {**LOCAL, **(environment or {})}, Args(**args))
    return tuple(getattr(config, key) for key in REWARD_PRESETS["default"]._fields)


@pytest.mark.parametrize("preset", REWARD_PRESETS)
def test_a_preset_can_be_chosen_in_every_source_of_settings(preset):
    wanted = tuple(REWARD_PRESETS[preset])
    assert scores({"REWARD_PRESET": preset}) == wanted
    assert scores(reward_preset=preset) == wanted
    assert scores(table={"reward_preset": preset}) == wanted


def test_a_preset_replaces_the_table_and_single_scores_override_it():
    assert scores(table={"format_score": 0.3}) == ("em", 0.3, 0.0, 0.0, 0.0)  # no preset: the table as it was changed
    assert scores({"REWARD_PRESET": "paper"}, table={"format_score": 0.3}) == ("em", 0.0, 0.0, 0.0, 0.0)
    chosen = {"REWARD_PRESET": "paper_v03", "SEARCH_R1_RETRIEVAL_SCORE": "0.1"}
    assert scores(chosen) == ("em", 0.2, 0.1, 0.1, 0.0)
    assert scores(chosen, format_score=0.25, reward_preset="f1") == ("f1", 0.25, 0.0, 0.1, 0.0)


def test_a_wrong_preset_or_metric_names_those_there_are():
    with pytest.raises(ConfigError, match=r"REWARD_PRESET .*'papper'.*default, paper, paper_v03"):
        scores({"REWARD_PRESET": "papper"})
    with pytest.raises(ConfigError, match=r"SEARCH_R1_ANSWER_METRIC .*'rouge'.*em, f1, sub_em"):
        scores({"SEARCH_R1_ANSWER_METRIC": "rouge"})


@pytest.mark.parametrize("other", ["FINAL_FORMAT_SCORE", "RETRIEVAL_SCORE"])
def test_scores_that_let_a_wrong_answer_beat_a_right_one_are_refused(other):
    with pytest.raises(ConfigError, match=f"format_score \\+ {other.lower()} is 1.1; at most 1"):
        scores({"SEARCH_R1_FORMAT_SCORE": "0.6", f"SEARCH_R1_{other}": "0.5"})


# --- metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "golds", "f1_score", "contains"),
    [
        ("Paris", ["Paris"], 1, True),
        ("in Paris, France", ["Paris"], 2 * 1 / (3 + 1), True),
        ("the city", ["city of light", "New York City"], 2 * 1 / (1 + 3), False),
        ("paris paris", ["Paris"], 2 * 1 / (2 + 1), True),
        ("comparison", ["Paris"], 0, False),
        ("A", ["A"], 1, True),
        ("", ["the"], 0, False),
        (None, ["Paris"], 0, False),
        ("Paris", [], 0, False),
    ],
)
def test_f1_and_sub_em(prediction, golds, f1_score, contains):
    assert f1(prediction, golds) == pytest.approx(f1_score)
    assert sub_em(prediction, golds) is contains
    assert exact_match(prediction, golds) is (f1_score == 1)


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("a the an b’-\u2013 \n\x00\x1f_²é0.\u0301"), max_size=30) | st.text(max_size=30))
def test_normalisation_is_that_of_the_reference(text):
    from torchmetrics.functional.text.squad import _normalize_text

    assert normalize_answer(text) == _normalize_text(text)


def test_exact_match_and_f1_are_those_of_torchmetrics_on_1000_random_pairs():
    import random

    from torchmetrics.functional.text import squad

    choose = random.Random(0)
    vocabulary = "the a An Paris paris, Lyon New York City! 1901 January U.S.A. São Tomé of B-52 it's".split()

    def phrase(least):
        return " ".join(choose.choices(vocabulary, k=choose.randint(least, 5)))

    seen = set()
    for number in range(1000):
        golds = [gold for gold in (phrase(1) for _ in range(choose.randint(1, 3))) if normalize_answer(gold)] or ["x"]
        prediction = choose.choice([choose.choice(golds).lower(), phrase(0), phrase(0)])
        target = {"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": str(number)}
        expected = squad({"prediction_text": prediction, "id": str(number)}, target)
        assert 100 * exact_match(prediction, golds) == expected["exact_match"].item()
        assert 100 * f1(prediction, golds) == pytest.approx(expected["f1"].item(), abs=1e-4)
        seen.add(round(f1(prediction, golds), 2))
    assert {0.0, 1.0} < seen and len(seen) > 8  # not all alike
