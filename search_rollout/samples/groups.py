"""The group filter in slime's rollout loop: reads a group's samples and tracks the current step."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from search_rollout.config import ConfigError, SearchConfig
from search_rollout.group_filter import FilterStep, Outcome, Reason, drop_reason
from search_rollout.samples.record import is_discarded, score_of

Group = Sequence[Any]  # slime's Samples of one prompt


class GroupSteps:
    """The current step of each rollout loop. In slime a step is one asyncio task, and ends with it."""

    def __init__(self) -> None:
        self._steps: WeakKeyDictionary[asyncio.Task, FilterStep] = WeakKeyDictionary()

    def judge(self, args: Any, config: SearchConfig, group: Group) -> Reason | None:
        """Why the group is dropped; None if it is kept.

        Raises ConfigError if the filter compares exact matches and there are none.
        """
        try:
            reason = drop_reason(outcomes(group, getattr(args, "reward_key", None)), config.group_filter)
        except ValueError as error:
            raise ConfigError(
                f"GROUP_FILTER=exact_match: {error}. Use generate_with_search.reward_func, or set GROUP_FILTER=reward."
            ) from error
        return self._current(args, config.group_filter_rounds).judge(group, reason)

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

    def _current(self, args: Any, rounds: int) -> FilterStep:
        """The running task's step; outside a task, a new step without a limit."""
        size = getattr(args, "rollout_batch_size", None) or 0
        step = FilterStep(size, size * rounds if size else math.inf)
        task = _task()
        return self._steps.setdefault(task, step) if task else step


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


def _task() -> asyncio.Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None
