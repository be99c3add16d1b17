"""The record of a rollout: through JSON and back, in its older form, and damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
from rollout_helpers import make_sample

from search_rollout.samples.record import (
    RecordError,
    RolloutRecord,
    Span,
    Turn,
    is_discarded,
    read_record,
    record_of,
    search_counts,
    store,
    store_score,
)
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

OLD = Path(__file__).resolve().parents[1] / "evaluation" / "sample_of_0_1.json"
FOUND = SearchResult(
    "Kenya", [Passage("Kenya", "Its capital is Nairobi.", 0.8765), Passage("", "x")], None, 0.25, "cache"
)
FAILED = SearchResult("Uganda", [], "no answer", 0.5, "backend")
RECORD = RolloutRecord(
    StopReason.ANSWERED,
    "abc",
    [Span("turn", 5), Span("correction", 9), Span("turn", 4), Span("observation", 30), Span("turn", 6)],
    [
        Turn("invalid", fault="no_action"),
        Turn("search", queries=["Kenya", "Uganda"], mistakes=["unknown_tool"], results=[FOUND, FAILED]),
        Turn("answer", answer="Nairobi"),
    ],
    search_counts([FOUND, FAILED]),
    0.75,
    {"reward": 0.8},
    {"finish": "stop"},
)


def test_a_record_survives_json() -> None:
    found = json.loads(json.dumps(RECORD.as_json(), allow_nan=False))
    assert found == RECORD.as_json() and read_record(found) == RECORD


def test_a_record_stores_each_passage_once() -> None:
    assert json.dumps(RECORD.as_json()).count("Its capital is Nairobi.") == 1


def test_it_says_what_the_rollout_did() -> None:
    assert RECORD.answer == "Nairobi" and RECORD.searched and not RECORD.discarded
    assert RECORD.model_turns == 3 and RECORD.corrections == 1
    assert [result.query for result in RECORD.searches] == ["Kenya", "Uganda"]
    assert RECORD.search_counts == {"queries": 2, "backend": 0, "cache": 1, "shared": 0, "failed": 1}
    assert not RECORD.valid_format  # a correction was needed


def test_a_rollout_that_was_cut_short_has_no_answer() -> None:
    record = RolloutRecord(StopReason.ABORTED, spans=[Span("turn", 1)], turns=[Turn("answer", answer="x")])
    assert record.answer is None and not record.valid_format


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 3},
        {"version": None},
        {"stop_reason": "bored"},
        {"stop_reason": None},
        {"spans": [["turn"]]},
        {"spans": 3},
        {"turns": [{}]},
        {"turns": [{"action": "search", "queries": ["a"], "results": [{}]}]},
        {"turns": [{"action": "search", "queries": ["a"], "results": [FOUND.query, FOUND.query]}]},
        {"search_seconds": "long"},
        {"score": 3},
    ],
)
def test_a_damaged_record_is_one_kind_of_error(damage: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        read_record(RECORD.as_json() | damage)


def test_siblings_share_no_metadata() -> None:
    shared = {"question": "?"}
    one, other = make_sample(metadata=shared), make_sample(metadata=shared)
    store(one, RECORD)
    store_score(one, {"reward": 1.0})
    assert shared == {"question": "?"} and record_of(other) is None
    stored = record_of(one)
    assert stored is not None and stored.score == {"reward": 1.0} and stored.turns == RECORD.turns


@pytest.mark.parametrize("metadata", [None, float("nan"), {}, {"search_r1": None}, {"search_r1": []}])
def test_a_sample_of_another_rollout_function_has_no_record(metadata: Any) -> None:
    sample = make_sample(metadata=metadata)
    assert record_of(sample) is None and not is_discarded(sample)


def test_a_record_of_version_0_1_is_read() -> None:
    found = json.loads(OLD.read_text(encoding="utf-8"))["metadata"]["search_r1"]
    record = read_record(found)
    assert "version" not in found and record.stop is StopReason.ANSWERED and record.answer == "Nairobi"
    assert [span.kind for span in record.spans] == ["turn", "observation", "turn"]
    assert [result.query for result in record.searches] == ["capital of Kenya 0"]
    assert record.searches[0].passages[0].title == "Kenya" and record.score is not None
