"""Decides which groups a training step keeps: GRPO learns nothing from a group with equal rewards.

Discarded samples are left out of the comparison, because they say nothing about the model. slime's own filter treats
their reward of 0.0 as a wrong answer, so it keeps a group that is all right except for one engine failure.

slime's loop generates until it has enough groups. The filter is the only hook inside that loop, so it also limits it:
once a step has dropped `max_dropped` groups, the filter keeps every group.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args
from weakref import WeakKeyDictionary

from search_rollout.config import ConfigError, GroupFilter, SearchConfig
from search_rollout.samples.record import is_discarded, score_of

logger = logging.getLogger(__name__)

Group = Sequence[Any]  # slime's Samples of one prompt
Reason: TypeAlias = Literal["all_right", "all_wrong", "same_reward", "too_few"]
REASONS: tuple[Reason, ...] = get_args(Reason)
TOLERANCE = 1e-6  # rewards closer than this count as equal


class Outcome(NamedTuple):
    """The outcome of a sample that was not discarded."""

    reward: float
    exact_match: bool | None  # None: another reward function scored it


def outcomes(group: Group, reward_key: str | None) -> list[Outcome]:
    """The outcomes of the group's samples, without discarded and unrewarded ones; `reward_key` is slime's."""
    return [
        Outcome(
            float(sample.reward[reward_key] if reward_key else sample.reward),
            (score_of(sample) or {}).get("exact_match"),
        )
        for sample in group
        if sample.reward is not None and not is_discarded(sample)
    ]


def drop_reason(group: Sequence[Outcome], group_filter: GroupFilter) -> Reason | None:
    """Why the group is dropped; None if it teaches something or the filter is off.

    Raises ConfigError if the filter compares exact matches and a sample has none.
    """
    if group_filter == "off":
        return None
    if len(group) < 2:
        return "too_few"
    right = {outcome.exact_match for outcome in group}
    if group_filter == "exact_match" and None in right:
        raise ConfigError(
            "GROUP_FILTER=exact_match: a sample has no exact match. Use generate_with_search.reward_func, or set "
            "GROUP_FILTER=reward."
        )
    values = [outcome.reward if group_filter == "reward" else float(bool(outcome.exact_match)) for outcome in group]
    if max(values) - min(values) > TOLERANCE:
        return None
    if right == {True}:
        return "all_right"
    return "all_wrong" if right == {False} else "same_reward"


@dataclass
class FilterStep:
    """The groups that one step of slime's rollout loop has finished so far."""

    size: int = 0  # groups that the step trains: slime's --rollout-batch-size
    max_dropped: float = math.inf
    dropped: Counter[Reason] = field(default_factory=Counter)
    kept: int = 0
    unfiltered: int = 0  # groups kept only because of the limit
    surplus: set[int] = field(default_factory=set)  # id() of each group kept beyond `size`, which slime does not train

    def judge(self, group: object, reason: Reason | None) -> Reason | None:
        """The reason if the group is dropped, None if it is kept."""
        full = self.kept >= self.size > 0
        if reason and not full and self.dropped.total() >= self.max_dropped:
            if not self.unfiltered:
                self._warn()
            self.unfiltered += 1
            reason = None
        if reason:
            self.dropped[reason] += 1
            return reason
        self.kept += 1
        if full:
            self.surplus.add(id(group))
        return None

    def series(self, group_filter: GroupFilter) -> dict[str, float]:
        """Counts of groups, for a plot."""
        figures: dict[str, float] = {"groups": self.kept + self.dropped.total()}
        if group_filter != "off":
            figures |= {f"groups_dropped/{reason}": self.dropped[reason] for reason in REASONS}
            figures["groups_unfiltered"] = self.unfiltered
        return figures

    def _warn(self) -> None:
        logger.warning(
            "GROUP_FILTER has dropped %d groups in this step (%s); the last %d groups are taken unfiltered. "
            "SEARCH_R1_GROUP_FILTER_ROUNDS sets this limit.",
            self.dropped.total(),
            ", ".join(f"{reason} {count}" for reason, count in self.dropped.items()),
            self.size - self.kept,
        )


class GroupSteps:
    """The current step of each rollout loop. In slime a step is one asyncio task, and ends with it."""

    def __init__(self) -> None:
        self._steps: WeakKeyDictionary[asyncio.Task, FilterStep] = WeakKeyDictionary()

    def judge(self, args: Any, config: SearchConfig, group: Group) -> Reason | None:
        """Why the group is dropped; None if it is kept. Raises ConfigError, as `drop_reason`.

        Outside a task every group is a step of its own, without a limit.
        """
        reason = drop_reason(outcomes(group, getattr(args, "reward_key", None)), config.group_filter)
        size = getattr(args, "rollout_batch_size", None) or 0
        step, task = FilterStep(size, size * config.group_filter_rounds if size else math.inf), _task()
        return (self._steps.setdefault(task, step) if task else step).judge(group, reason)

    def finish(self, args: Any, groups: Sequence[Group], data_source: Any) -> tuple[FilterStep, list[Group]]:
        """Ends the step and returns it with its groups, without those saved for the next step.

        slime stores aborted groups for the next step, but drops surplus groups that finished together with the last one
        it needed. With --partial-rollout we store those too. `data_source` is slime's, or its `get_samples`.
        """
        task = _task()
        step = (self._steps.pop(task, None) if task else None) or FilterStep()
        surplus = [group for group in groups if id(group) in step.surplus]
        if not surplus or not getattr(args, "partial_rollout", False):
            return step, list(groups)
        getattr(data_source, "__self__", data_source).add_samples(surplus)
        return step, [group for group in groups if id(group) not in step.surplus]


def _task() -> asyncio.Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None
