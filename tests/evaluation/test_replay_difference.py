"""What `first_difference` names when rollouts are repeated."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from evaluation.replay import first_difference
from search_rollout.samples.record import RolloutRecord, Span, Turn
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

PROMPT, RESPONSE = [1, 2, 3], [10, 11, 12, 20, 21, 13, 14]  # a turn of 3, an observation of 2, a turn of 2


def sample(question: str = "q1") -> dict[str, Any]:
    result = SearchResult("capital", [Passage("Kenya", "Nairobi")], seconds=1.5)
    turns = [Turn("search", queries=["capital"], results=[result]), Turn("answer", answer="Nairobi")]
    spans = [Span("turn", 3), Span("observation", 2), Span("turn", 2)]
    record = RolloutRecord(StopReason.ANSWERED, "trajectory-1", spans, turns, search_seconds=2.0)
    return {
        "id": question,
        "tokens": PROMPT + RESPONSE,
        "response_length": len(RESPONSE),
        "loss_mask": [1, 1, 1, 0, 0, 1, 1],
        "rollout_log_probs": [-0.1, -0.2, -0.3, 0.0, 0.0, -0.4, -0.5],
        "reward": 1.0,
        "status": "completed",
        "weight_versions": ["3"],
        "metadata": {"search_r1": record.as_json()},
    }


def changed(*changes: Callable[[dict[str, Any]], Any]) -> str:
    """What is said of the second of three samples after these changes to it."""
    recorded = [sample("q0"), sample("q1"), sample("q1")]
    again = copy.deepcopy(recorded)
    for change in changes:
        change(again[2])
    return str(first_difference(recorded, again, lambda ids: f"<{ids[0]}>"))


def put(column: str, at: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row[column].__setitem__(at, value)


def in_turn(number: int, **fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row["metadata"]["search_r1"]["turns"][number].update(fields)


def other_times(row: dict[str, Any]) -> None:
    record = row["metadata"]["search_r1"]
    record["trajectory_id"], record["search_seconds"] = "trajectory-2", 9.0
    record["turns"][0]["results"][0] |= {"seconds": 7.0, "origin": "cache"}


def test_equal_rollouts_are_equal_whatever_time_they_took() -> None:
    assert changed() == changed(other_times) == "None"


WHERE = "question q1, sample 1"
CASES = [
    ([put("tokens", 3 + 1, 99)], f"{WHERE}, turn 1, token 1: id 99 '<99>', not 11 '<11>'"),
    (
        [put("tokens", 3 + 5, 99), put("rollout_log_probs", 6, -9.0)],
        f"{WHERE}, turn 2, token 5: id 99 '<99>', not 13 '<13>'",
    ),
    # A bit less probable already before another token came of it: that is the first difference.
    (
        [put("tokens", 3 + 5, 99), put("rollout_log_probs", 2, -0.30000000000000004)],
        f"{WHERE}, turn 1, token 2: log-probability -0.30000000000000004, not -0.3",
    ),
    ([put("loss_mask", 3, 1)], f"{WHERE}, turn 1, token 3: loss mask 1, not 0"),
    (
        [lambda row: row.update(tokens=row["tokens"][:-1], response_length=6)],
        f"{WHERE}, turn 2, token 6: id none, not 14 '<14>'",
    ),
    ([put("tokens", 0, 7)], f"{WHERE}: the prompt's ids"),
    ([in_turn(1, answer="Mombasa")], f"{WHERE}, turn 2: answer 'Mombasa', not 'Nairobi'"),
    ([in_turn(0, queries=["city"])], f"{WHERE}, turn 1: queries ['city'], not ['capital']"),
    (
        [in_turn(0, results=[{"passages": [["Peru", "Lima"]], "error": None, "seconds": 0, "origin": "cache"}])],
        f"{WHERE}, turn 1: the passages of ['capital']",
    ),
    (
        [
            put("tokens", 3 + 3, 22),
            in_turn(0, results=[{"passages": [], "error": "gone", "seconds": 0, "origin": "backend"}]),
        ],
        f"{WHERE}, turn 1, token 3: id 22 '<22>', not 20 '<20>'; the search 'capital' found other passages (gone)",
    ),
    ([lambda row: row.update(reward=0.2)], f"{WHERE}: reward 0.2, not 1.0"),
    ([lambda row: row.update(weight_versions=["4"])], f"{WHERE}: weight_versions ['4'], not ['3']"),
    (
        [lambda row: row["metadata"]["search_r1"].update(stop_reason="turns_used")],
        f"{WHERE}: stop reason 'turns_used', not 'answered'",
    ),
    ([lambda row: row.update(id="q7")], f"{WHERE}: question q7 was asked instead"),
]


@pytest.mark.parametrize(("changes", "sentence"), CASES)
def test_the_first_difference_is_reported(changes: list[Callable[[dict[str, Any]], Any]], sentence: str) -> None:
    assert changed(*changes) == sentence


@pytest.mark.parametrize(("recorded", "again"), [(2, 1), (1, 2)])
def test_a_sample_too_few_or_too_many_is_reported(recorded: int, again: int) -> None:
    found = first_difference([sample()] * recorded, [sample()] * again, str)
    assert str(found) == f"question q1, sample 1: {again} samples, not {recorded}"


def test_samples_without_log_probabilities_are_compared_too() -> None:
    bare = sample() | {"rollout_log_probs": None}
    assert first_difference([bare], [copy.deepcopy(bare)], str) is None
    assert "log-probability -0.1, not none" in str(first_difference([bare], [sample()], str))
