"""Which groups a step keeps. `tests/contracts/test_slime_groups.py` has slime's real loop."""

import argparse
import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from slime.observability import logging_utils
from slime.rollout.filter_hub.base_types import DynamicFilterOutput
from slime.utils.types import Sample

import generate_with_search
from search_rollout.config import ConfigError, load_config
from search_rollout.group_filter import FilterStep, Outcome, drop_reason, outcomes
from search_rollout.samples.record import RolloutRecord
from search_rollout.trajectory import StopReason

RIGHT, WRONG, INFORMAL = Outcome(1.0, True), Outcome(0.2, False), Outcome(0.8, True)  # informal: right, format invalid


def sample(outcome: Outcome | None, **fields: Any) -> Sample:
    """A finished rollout; None: a discarded one, with its preset reward."""
    record = RolloutRecord(StopReason.ANSWERED if outcome else StopReason.ENGINE_FAILED)
    if outcome and outcome.exact_match is not None:
        record.score = {"exact_match": outcome.exact_match}
    values = {"reward": outcome.reward if outcome else 0.0, "metadata": {"search_r1": record.as_json()}}
    return Sample(**(values | fields))


def group(*kinds: Outcome | None) -> list[Sample]:
    return [sample(kind) for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "by_reward", "by_exact_match"),
    [
        ((RIGHT, WRONG, WRONG), None, None),
        ((RIGHT, RIGHT, RIGHT), "all_right", "all_right"),
        ((WRONG, WRONG), "all_wrong", "all_wrong"),
        ((RIGHT, INFORMAL), None, "all_right"),  # only the format differs
        ((WRONG, Outcome(0.0, False)), None, "all_wrong"),
        ((Outcome(0.5, True), Outcome(0.5, False)), "same_reward", None),
        ((RIGHT, RIGHT, None), "all_right", "all_right"),  # an engine failure is no wrong answer
        ((RIGHT, WRONG, None), None, None),
        ((RIGHT, None, None), "too_few", "too_few"),
        ((None, None), "too_few", "too_few"),
        ((), "too_few", "too_few"),
    ],
)
def test_a_group_is_kept_if_its_samples_that_were_not_discarded_differ(
    kinds: Sequence[Outcome | None], by_reward: str | None, by_exact_match: str | None
) -> None:
    found = outcomes(group(*kinds), None)
    assert drop_reason(found, "reward") == by_reward
    assert drop_reason(found, "exact_match") == by_exact_match
    assert drop_reason(found, "off") is None


def test_rewards_of_a_dict_are_read_by_slimes_key_and_missing_ones_left_out() -> None:
    samples = [Sample(reward={"em": 1.0, "f1": 0.3}), Sample(reward={"em": 1.0, "f1": 0.4}), Sample(reward=None)]
    assert drop_reason(outcomes(samples, "em"), "reward") == "same_reward"
    assert drop_reason(outcomes(samples, "f1"), "reward") is None


def test_rounding_makes_no_difference() -> None:
    assert drop_reason([Outcome(0.1 + 0.2, None), Outcome(0.3, None)], "reward") == "same_reward"


def test_a_step_takes_what_comes_once_it_has_dropped_its_limit(caplog: pytest.LogCaptureFixture) -> None:
    step = FilterStep(size=2, max_dropped=4)
    verdicts = [step.judge(object(), "all_wrong") for _ in range(6)]
    assert verdicts == ["all_wrong"] * 4 + [None, None]
    assert (step.kept, step.unfiltered) == (2, 2)
    [warning] = [record.getMessage() for record in caplog.records]
    assert "dropped 4 groups in this step (all_wrong 4); the last 2 groups" in warning and "ROUNDS" in warning


def test_after_its_last_group_a_step_drops_again_and_the_kept_ones_are_surplus() -> None:
    step, groups = FilterStep(size=1, max_dropped=1), [object() for _ in range(4)]
    assert [
        step.judge(one, reason) for one, reason in zip(groups, ["too_few", "too_few", None, "too_few"], strict=True)
    ] == [
        "too_few",
        None,
        None,
        "too_few",
    ]
    assert step.surplus == {id(groups[2])}


# --- the hooks ---


class DataSource:
    """slime's, as far as the hook sees it."""

    def __init__(self) -> None:
        self.stored: list[Any] = []

    def get_samples(self, count: int) -> list[Any]:
        raise AssertionError("the hook fetches nothing")

    def add_samples(self, groups: list[Any]) -> None:
        self.stored += groups


def args_of(**changes: Any) -> argparse.Namespace:
    values = {"search_backend": "local", "rollout_batch_size": 2, "partial_rollout": False, "group_filter": "reward"}
    return argparse.Namespace(**(values | changes))


async def step_of(args: Any, groups: list[list[Sample]], source: DataSource) -> list[DynamicFilterOutput]:
    """All groups finish at the same time, as at the end of a step."""
    verdicts = [generate_with_search.keep_group(args, one) for one in groups]
    generate_with_search.process_all_groups(args, groups, source.get_samples)
    return verdicts


def log_of(args: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What is logged for a rollout that trains these samples."""
    entries: list[dict[str, float]] = []
    monkeypatch.setattr(logging_utils, "log", lambda args, metrics, step_key: entries.append(metrics))
    args.wandb_always_use_train_step = False
    generate_with_search.log_rollout(0, args, samples, None, 1.0)
    return {name.removeprefix("rollout/search_r1/"): value for name, value in entries[0].items()}


def scored(exact_match: bool) -> Sample:
    """A finished rollout with a whole record."""
    record = RolloutRecord(
        StopReason.ANSWERED, search_counts=dict.fromkeys(("queries", "cache", "shared", "failed"), 0)
    )
    record.score = {"exact_match": exact_match}
    return Sample(reward=float(exact_match), loss_mask=[], metadata={"search_r1": record.as_json()})


async def test_the_series_cover_dropped_groups_and_count_them_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    args, source = args_of(), DataSource()
    groups = [[scored(True), scored(False)], [scored(False)] * 2, [scored(False)] * 2, [scored(False), scored(True)]]
    verdicts = await asyncio.create_task(step_of(args, groups, source))
    assert [(verdict.keep, verdict.reason) for verdict in verdicts] == [
        (True, None),
        (False, "all_wrong"),
        (False, "all_wrong"),
        (True, None),
    ]
    series = log_of(args, [*groups[0], *groups[3]], monkeypatch)
    assert series["exact_match"] == 2 / 8
    assert (series["groups"], series["groups_dropped/all_wrong"], series["groups_dropped/too_few"]) == (4, 2, 0)
    assert series["groups_unfiltered"] == 0
    again = log_of(args, [*groups[0], *groups[3]], monkeypatch)  # they were those of one step
    assert again["exact_match"] == 2 / 4 and "groups" not in again


async def test_the_groups_of_a_step_that_was_not_logged_are_not_those_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = args_of()
    await asyncio.create_task(step_of(args, [[scored(True), scored(False)]] * 2, DataSource()))
    series = log_of(args, [scored(True)], monkeypatch)
    assert series["exact_match"] == 1.0 and "groups" not in series


@pytest.mark.parametrize("partial", [False, True])
async def test_a_finished_group_that_slime_does_not_train_goes_into_the_next_step(partial: bool) -> None:
    args, source = args_of(partial_rollout=partial), DataSource()
    groups = [group(RIGHT, WRONG) for _ in range(3)]
    await asyncio.create_task(step_of(args, groups, source))
    assert source.stored == ([groups[2]] if partial else [])
    await asyncio.create_task(step_of(args, groups[:2], source))
    assert len(source.stored) == partial  # the next step begins with no surplus


async def test_each_task_is_a_separate_step(caplog: pytest.LogCaptureFixture) -> None:
    args = args_of(group_filter_rounds=1)
    for _ in range(2):
        verdicts = await asyncio.create_task(step_of(args, [group(WRONG, WRONG)] * 4, DataSource()))
        assert [verdict.keep for verdict in verdicts] == [False, False, True, True]
    assert len(caplog.records) == 2


async def test_a_filter_that_is_off_keeps_every_group() -> None:
    verdicts = await asyncio.create_task(step_of(args_of(group_filter="off"), [group(WRONG, WRONG)], DataSource()))
    assert [verdict.keep for verdict in verdicts] == [True]


def test_without_an_event_loop_nothing_is_bounded() -> None:
    args = args_of(group_filter_rounds=1)
    assert not any(generate_with_search.keep_group(args, group(WRONG, WRONG)).keep for _ in range(10))


def test_exact_match_without_scores_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="GROUP_FILTER=reward"):
        generate_with_search.keep_group(args_of(group_filter="exact_match"), [Sample(reward=1.0), Sample(reward=0.0)])


def test_the_setting_is_checked_and_off_unless_set() -> None:
    args = argparse.Namespace(search_backend="local")
    assert load_config({}, {}, args).group_filter == "off"
    assert load_config({}, {"GROUP_FILTER": "exact_match"}, args).group_filter == "exact_match"
    with pytest.raises(ConfigError, match=r"GROUP_FILTER .* must be one of off, reward, exact_match"):
        load_config({}, {"GROUP_FILTER": "on"}, args)
    with pytest.raises(ConfigError, match="SEARCH_R1_GROUP_FILTER_ROUNDS"):
        load_config({}, {"SEARCH_R1_GROUP_FILTER_ROUNDS": "0"}, args)


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
