"""Compares recorded and new rewards and their advantages within groups, and formats both as a table."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from evaluation.report import aligned
from search_rollout.rewards import group_normalised

SAME = 1e-9  # smaller differences come from rounding in text formats


class Rescored(NamedTuple):
    """One trajectory under two rewards."""

    where: str  # file, and line or sample
    part: str  # its file, or the phase of a demo run
    number: int | None  # slime's index of the sample
    group: Hashable | None  # None: no group
    kept: bool  # False: discarded
    old: float
    new: float

    @property
    def changed(self) -> bool:
        return abs(self.new - self.old) > SAME


class Advantages(NamedTuple):
    """GRPO's advantage of a trajectory under both rewards."""

    old: float
    new: float

    @property
    def turn(self) -> str:
        """The signs before and after, such as "+ to 0"."""
        return f"{_sign(self.old)} to {_sign(self.new)}"


def groups_of(rows: Sequence[Rescored]) -> list[list[int]]:
    """The indices of each group with at least two samples that were not discarded."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.group is not None and row.kept:
            groups[row.group].append(place)
    return [places for places in groups.values() if len(places) > 1]


def advantages_of(rows: Sequence[Rescored]) -> list[Advantages | None]:
    """(reward - mean) / (std + 1e-6) within each group, for both rewards; None for samples without a group.

    A group of equal rewards gets exactly 0, which rounding in the mean might miss.
    """
    found: list[Advantages | None] = [None] * len(rows)
    for places in groups_of(rows):
        old, new = (_normalised([getattr(rows[place], name) for place in places]) for name in ("old", "new"))
        for place, *pair in zip(places, old, new, strict=True):
            found[place] = Advantages(*pair)
    return found


def _normalised(rewards: list[float]) -> list[float]:
    if _flat(rewards):
        return [0.0] * len(rewards)
    return group_normalised(rewards, [True] * len(rewards), size=len(rewards), by_deviation=True)


def _flat(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) <= SAME


def _sign(value: float) -> str:
    return "0" if abs(value) <= SAME else "+" if value > 0 else "-"


def table(rows: Sequence[Rescored], advantages: Sequence[Advantages | None], name: str) -> str:
    """Both rewards side by side, and the changes of the advantages' signs; `name` names the new reward."""
    kept = [row for row in rows if row.kept]
    parts = list(dict.fromkeys(row.part for row in kept))
    rewards = [_line("mean reward", [(row.old, row.new) for row in kept])]
    for part in parts if len(parts) > 1 else ():
        rewards.append(_line(f"  {part}", [(row.old, row.new) for row in kept if row.part == part]))
    rewards.append(_line("share above 0", [(row.old > SAME, row.new > SAME) for row in kept]))
    if groups := [[rows[place] for place in places] for places in groups_of(rows)]:
        flat = [(_flat([row.old for row in group]), _flat([row.new for row in group])) for group in groups]
        rewards.append(_line("groups without variance", flat))
        rewards.append(_line("mean |advantage|", [(abs(pair.old), abs(pair.new)) for pair in advantages if pair]))
    changed = sum(row.changed for row in rows)
    counts = f"{len(rows):,} samples, {changed:,} with another reward ({changed / len(rows):.1%})"
    if discarded := len(rows) - len(kept):
        counts += f"; {discarded:,} discarded samples keep theirs and are left out of all means"
    lines = aligned(["", "recorded", name, "change"], rewards)
    return "\n".join(["", *lines, "", counts, _signs(advantages, len(groups))])


def _line(title: str, pairs: Sequence[tuple[float, float]]) -> list[str]:
    old, new = (statistics.fmean(values) for values in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return [title, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"]


def _signs(advantages: Sequence[Advantages | None], groups: int) -> str:
    if not groups:
        return "no groups: no two samples have the same `group_index`, so there are no advantages"
    compared = [pair for pair in advantages if pair]
    turns = Counter(pair.turn for pair in compared if _sign(pair.old) != _sign(pair.new))
    listed = ", ".join(f"{turn} {count:,}" for turn, count in sorted(turns.items())) or "none"
    changes = f"advantages that change sign: {turns.total():,} of {len(compared):,} ({listed})"
    return f"groups compared: {groups:,}; {changes}"
