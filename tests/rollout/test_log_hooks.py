"""The log hooks: what they give slime's logger, and that no trouble with a plot ends a job."""

import argparse
import logging
from typing import Any

import pytest
from slime.observability import logging_utils
from slime.utils.types import Sample

import generate_with_search
from search_rollout.samples.record import RolloutRecord, Span, search_counts
from search_rollout.trajectory import StopReason


def finished(**info: Any) -> Sample:
    """A rollout of one token."""
    record = RolloutRecord(StopReason.ANSWERED, spans=[Span("turn", 1)], search_counts=search_counts([])).as_json()
    score = {"exact_match": True, "valid_format": True, "answer": "a", "retrieved_gold": False}
    fields = {"tokens": [1, 2], "response_length": 1, "loss_mask": [1], "rollout_log_probs": [-0.5], "reward": 1.0}
    return Sample(**fields, metadata={"search_r1": record | {"score": score} | info})


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], str]]:
    entries: list[tuple[dict[str, Any], str]] = []
    monkeypatch.setattr(logging_utils, "log", lambda args, metrics, step_key: entries.append((metrics, step_key)))
    return entries


ARGS = argparse.Namespace(wandb_always_use_train_step=False)


def test_a_rollout_is_logged_under_slimes_prefix_and_slime_asked_to_log_its_own(logged: list) -> None:
    assert generate_with_search.log_rollout(7, ARGS, [finished()], None, 1.0) is False
    [(metrics, step_key)] = logged
    assert metrics[step_key] == 7 and step_key == "rollout/step"
    assert metrics["rollout/search_r1/exact_match"] == 1.0
    assert all(name == step_key or name.startswith("rollout/search_r1/") for name in metrics)


def test_the_data_sets_of_an_evaluation_are_logged_separately(logged: list) -> None:
    data = {"nq": {"samples": [finished()]}, "hotpotqa": {"samples": [finished(stop_reason="turns_used")]}, "old": {}}
    assert generate_with_search.log_eval_rollout(7, ARGS, data, {}) is False
    [(metrics, step_key)] = logged
    assert metrics[step_key] == 7 and step_key == "eval/step"
    assert metrics["eval/nq/search_r1/truncated"] == 0.0
    assert metrics["eval/hotpotqa/search_r1/truncated"] == 1.0
    assert not [name for name in metrics if name.startswith("eval/old")]


def test_calls_and_costs_are_those_since_the_last_entry(logged: list) -> None:
    generate_with_search.log_rollout(0, ARGS, [], None, 1.0)
    for _ in range(3):
        generate_with_search._usage.count_call(0.001)
    generate_with_search.log_eval_rollout(1, ARGS, {})
    generate_with_search._usage.count_call(0.001)
    generate_with_search.log_rollout(1, ARGS, [], None, 1.0)
    _, (evaluation, _), (rollout, _) = logged
    assert evaluation["eval/search_r1/search_calls"] == 3
    assert evaluation["eval/search_r1/search_usd"] == pytest.approx(0.003)
    assert rollout["rollout/search_r1/search_calls"] == 1
    assert rollout["rollout/search_r1/search_usd_total"] >= 0.004


def test_samples_of_an_earlier_run_are_not_logged_again(logged: list) -> None:
    args = argparse.Namespace(**vars(ARGS), load_debug_rollout_data="dumps/{rollout_id}.pt")
    assert generate_with_search.log_rollout(0, args, [finished()], None, 1.0) is False
    assert logged == []


def test_a_failing_logger_is_reported_and_does_not_end_the_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(logging_utils, "log", broken)
    assert generate_with_search.log_rollout(3, ARGS, [finished()], None, 1.0) is False
    assert "rollout 3: the series could not be logged" in caplog.text and "the disk is full" in caplog.text


def test_missing_slime_loggers_are_reported_in_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(logging_utils, "log")
    assert generate_with_search.log_rollout(3, ARGS, [finished()], None, 1.0) is False
    assert "this slime has no logging_utils.log or tracking_utils.log" in caplog.text


def test_the_figures_stand_in_the_jobs_log_too(logged: list, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "search_rollout.samples.slime_logging"):
        generate_with_search.log_rollout(3, ARGS, [finished()], None, 1.0)
    assert "rollout/search_r1/exact_match': 1.0" in caplog.text
