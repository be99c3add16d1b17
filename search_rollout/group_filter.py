"""Decides which groups a training step keeps: GRPO learns nothing from a group with equal rewards.

Discarded samples are left out of the comparison, because they say nothing about the model. slime's own filter treats
their reward of 0.0 as a wrong answer, so it keeps a group that is all right except for one engine failure.

slime's loop generates until it has enough groups. The filter is the only hook inside that loop, so it also limits it:
once a step has dropped `max_dropped` groups, the filter keeps every group.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, get_args

logger = logging.getLogger(__name__)

GroupFilter: TypeAlias = Literal["off", "reward", "exact_match"]
Reason: TypeAlias = Literal["all_right", "all_wrong", "same_reward", "too_few"]
REASONS: tuple[Reason, ...] = get_args(Reason)
TOLERANCE = 1e-6  # rewards closer than this count as equal


class Outcome(NamedTuple):
    """The outcome of a sample that was not discarded."""

    reward: float
    exact_match: bool | None  # None: another reward function scored it


def drop_reason(group: Sequence[Outcome], group_filter: GroupFilter) -> Reason | None:
    """Why the group is dropped; None if it teaches something or the filter is off.

    Raises ValueError if the filter compares exact matches and a sample has none.
    """
    if group_filter == "off":
        return None
    if len(group) < 2:
        return "too_few"
    right = {outcome.exact_match for outcome in group}
    if group_filter == "exact_match" and None in right:
        raise ValueError("a sample has no exact match")
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
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items())
        logger.warning(
            "GROUP_FILTER has dropped %d groups in this step (%s); the last %d groups are taken unfiltered. "
            "SEARCH_R1_GROUP_FILTER_ROUNDS sets this limit.",
            self.dropped.total(),
            reasons,
            self.size - self.kept,
        )
