"""The guard: when its rule is met, what it then does, and the checkpoint that it names."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from slime.observability import logging_utils
from test_log_hooks import ARGS, finished

import generate_with_search
from benchmarks.bench_collapse_guard import RECORDED, replay
from search_rollout.collapse_guard import Alarm, CollapseDetected, CollapseGuard, act_on, last_good_checkpoint

HEALTHY = {"valid_format": 0.95, "truncated": 0.02, "repetition": 0.15, "log_prob": -0.05}
COLLAPSED = {"valid_format": 0.5, "truncated": 0.4, "repetition": 0.5, "log_prob": -0.3}


def alarms(*steps: dict[str, float]) -> list[int]:
    """The steps in which an alarm begins."""
    guard = CollapseGuard()
    return [number for number, series in enumerate(steps) if guard.observe(number, series)]


def changed(**series: float) -> dict[str, float]:
    return HEALTHY | series


def test_two_consecutive_bad_steps_are_a_collapse_and_one_is_not() -> None:
    assert alarms(HEALTHY, COLLAPSED, COLLAPSED) == [2]
    assert alarms(HEALTHY, COLLAPSED, HEALTHY, COLLAPSED, HEALTHY) == []
    assert alarms(COLLAPSED, COLLAPSED, COLLAPSED) == []  # bad from the start is no fall


def test_an_alarm_is_raised_once_until_the_run_has_recovered() -> None:
    assert alarms(HEALTHY, *[COLLAPSED] * 5, HEALTHY, COLLAPSED, COLLAPSED) == [2, 8]


@pytest.mark.parametrize("healed", ["valid_format", "truncated"])
def test_format_and_truncation_are_both_needed(healed: str) -> None:
    assert alarms(HEALTHY, *[COLLAPSED | {healed: HEALTHY[healed]}] * 4) == []


def test_repetition_or_log_probability_must_confirm_it() -> None:
    confirmed = changed(valid_format=0.5, truncated=0.4)
    assert alarms(HEALTHY, *[confirmed] * 4) == []  # longer answers alone
    assert alarms(HEALTHY, *[confirmed | {"repetition": 0.5}] * 2) == [2]
    assert alarms(HEALTHY, *[confirmed | {"log_prob": -0.3}] * 2) == [2]


def test_a_slow_decline_is_compared_with_the_best_and_not_with_the_step_before() -> None:
    def declined(step: int) -> dict[str, float]:
        lost = 0.011 * step
        return {"valid_format": 1 - lost, "truncated": lost, "repetition": lost, "log_prob": 0.0}

    assert alarms(*map(declined, range(30))) == [11]  # the first to have lost 0.1 is step 10


def test_a_step_without_data_is_passed_over() -> None:
    assert alarms({}, HEALTHY, COLLAPSED, {"discarded": 1.0}, COLLAPSED) == [4]


def test_an_untrained_model_that_improves_raises_no_alarm() -> None:
    steps = [
        {"valid_format": n / 20, "truncated": 1 - n / 20, "repetition": 0.6 - n / 40, "log_prob": -1.0 + n / 20}
        for n in range(20)
    ]
    assert alarms(*steps) == []


# --- what it does ---


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the log hook over a healthy step and two collapsed ones, with a mode and a checkpoint folder."""
    monkeypatch.setattr(logging_utils, "log", lambda *_, **__: None)
    monkeypatch.setattr(generate_with_search, "_guard", CollapseGuard())

    def run(mode: str, save: Path | None = None) -> None:
        args = argparse.Namespace(**vars(ARGS), collapse_guard=mode, save=save and str(save), search_backend="local")
        for rollout_id, bad in enumerate([False, True, True], start=7):
            generate_with_search.log_rollout(rollout_id, args, [batch(bad)], None, 1.0)

    return run


def batch(bad: bool) -> list[Any]:
    """Ten rollouts of some tokens; bad ones end without an answer and repeat one token."""
    score = {"exact_match": not bad, "valid_format": not bad, "answer": None, "retrieved_gold": False}
    samples = [finished(score=score, spans=[["turn", 20]]) for _ in range(10)]
    for sample in samples:
        sample.tokens = [0, *([1] * 20 if bad else range(20))]
        sample.response_length, sample.loss_mask, sample.rollout_log_probs = 20, [1] * 20, [-0.5] * 20
        if bad:
            sample.metadata["search_r1"]["stop_reason"] = "turns_used"
    return samples


def test_a_warning_says_what_moved_and_since_when(guarded: Any, caplog: pytest.LogCaptureFixture) -> None:
    guarded("warn")
    [record] = [record for record in caplog.records if "collapsing" in record.getMessage()]
    assert "since rollout 8: valid_format 1.00 → 0.00, truncated 0.00 → 1.00" in record.getMessage()
    assert "No checkpoint was saved (SAVE_DIR)" in record.getMessage()


def test_off_says_nothing(guarded: Any, caplog: pytest.LogCaptureFixture) -> None:
    guarded("off")
    assert "collapsing" not in caplog.text


def test_stop_ends_the_job_and_names_the_checkpoint_to_go_back_to(guarded: Any, tmp_path: Path) -> None:
    saved(tmp_path, 5, 6, 7, whole=7)
    with pytest.raises(CollapseDetected) as error:
        guarded("stop", tmp_path)
    # rollout 7, the last good one, was made by the checkpoint of rollout 6
    assert f"Go back to {tmp_path}/iter_0000006 (LOAD_DIR={tmp_path}, and -- --ckpt-step 6)" in str(error.value)


def test_a_logger_that_fails_does_not_blind_the_guard(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(logging_utils, "log", broken)
    with pytest.raises(CollapseDetected):
        guarded("stop")


# --- the checkpoint ---


def saved(folder: Path, *steps: int, whole: int | None) -> Path:
    for step in steps:
        (folder / f"iter_{step:07d}").mkdir(parents=True)
    if whole is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(f"{whole}\n")
    return folder


@pytest.mark.parametrize(
    ("steps", "whole", "since", "expected"),
    [
        ((9, 19, 29), 29, 25, 19),
        ((9, 19, 29), 29, 31, 29),  # 29 rolled out 30, which was still good
        ((9, 19, 29), 29, 30, 19),
        ((9, 19, 29), 19, 50, 19),  # 29 is half written
        ((9, 19), 19, 5, None),
        ((0, 1), 1, 2, None),  # Megatron would take --ckpt-step 0 for the latest
        ((), 19, 50, None),
        ((9,), None, 50, None),
    ],
)
def test_the_checkpoint_is_the_newest_whole_one_whose_model_was_still_good(
    tmp_path: Path, steps: tuple[int, ...], whole: int | None, since: int, expected: int | None
) -> None:
    assert last_good_checkpoint(saved(tmp_path, *steps, whole=whole), since) == expected


@pytest.mark.parametrize("content", ["release", "", "7\x00", "é"])
def test_a_damaged_tracker_or_folder_names_no_checkpoint(tmp_path: Path, content: str) -> None:
    saved(tmp_path, 3, whole=None)
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(content.encode("latin-1"))
    assert last_good_checkpoint(tmp_path, 50) is None
    assert last_good_checkpoint(tmp_path / "not there", 50) is None
    alarm = Alarm(50, HEALTHY, COLLAPSED)
    with pytest.raises(CollapseDetected, match="older than the collapse"):
        act_on(alarm, "stop", str(tmp_path))


# --- recorded runs ---


@pytest.mark.parametrize("run", json.loads(RECORDED.read_text()), ids=lambda run: run["name"])
def test_recorded_collapses_are_noticed_before_exact_match_is_lost_and_healthy_runs_are_left_alone(run: Any) -> None:
    found = replay(run["series"])
    assert (found.alarm is not None) is run["collapsed"]
    assert found.lost is None or found.alarm < found.lost
