"""Recorded trajectories under a new reward: reads them as slime's Samples, and compares rewards and advantages."""

import dataclasses
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report import aligned
from evaluation.sample_files import read_all
from qa_em_format import gold_answers
from search_rollout.rewards import group_normalised
from search_rollout.samples.record import METADATA_KEY, is_discarded

SAME = 1e-9  # smaller differences come from rounding in text formats


@dataclass
class Rescored:
    """One trajectory under two rewards."""

    where: str  # file, and line or sample
    part: str  # its file, or the phase of a demo run
    number: int | None  # slime's index of the sample
    group: Hashable | None  # None: no group
    kept: bool  # False: discarded
    old: float
    new: float
    advantages: tuple[float, float] | None = None  # GRPO's under both rewards; None: no group to compare with


def read_recorded(
    files: Sequence[Path], reward_key: str | None, left_out: defaultdict[str, int], *, ours: bool, trust_pickle: bool
) -> Iterator[tuple[Any, Rescored]]:
    """Each sample that can be scored again, as slime's Sample, and its row with the recorded reward as the new one.

    `left_out` counts the others by reason. `ours`: score with this plugin's reward, which needs a gold answer. Raises
    ValueError that names file and line.
    """
    for found in read_all(files, "scoring", trust_pickle=trust_pickle):
        fields = found.fields
        if reason := _unusable(fields, ours):
            left_out[reason] += 1
            continue
        phase = fields.get("phase")  # a demo's log has one for each step
        group = None if fields.get("group_index") is None else (found.path, phase, fields["group_index"])
        reward, sample = reward_value(fields["reward"], reward_key, found.where), _sample(fields, found.where)
        kept = not is_discarded(sample)
        yield sample, Rescored(found.where, phase or found.path.name, sample.index, group, kept, reward, reward)


def _unusable(fields: Mapping[str, Any], ours: bool) -> str | None:
    """Why a sample cannot be scored again."""
    if fields.get("reward") is None:
        return "without a recorded reward (aborted)"
    if not ours:
        return None
    if not gold_answers(fields.get("label")):
        return "without a gold answer in `label`"
    metadata = fields.get("metadata")
    recorded = isinstance(metadata, Mapping) and isinstance(metadata.get(METADATA_KEY), Mapping)
    return None if recorded or isinstance(fields.get("response"), str) else "with neither a record nor a `response`"


def _sample(fields: Mapping[str, Any], where: str) -> Any:
    """slime's Sample, filled with the known fields. Raises ValueError."""
    from slime.utils.types import Sample

    names = {field.name for field in dataclasses.fields(Sample)}
    known = {name: value for name, value in fields.items() if name in names and not name.endswith("_info")}
    try:
        status = Sample.Status(fields.get("status") or "completed")
    except ValueError:
        raise ValueError(f"{where}: {fields['status']!r} is not one of slime's statuses.") from None
    return Sample(**{**known, "status": status, "reward": None})


def reward_value(reward: Any, reward_key: str | None, where: str) -> float:
    """The number in a reward. Raises ValueError."""
    if isinstance(reward, Mapping):
        if reward_key not in reward:
            keys = ", ".join(map(str, reward))
            raise ValueError(f"{where}: the reward is a dict; give --reward-key, one of: {keys}.")
        reward = reward[reward_key]
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: the reward {reward!r} is not a number.")
    return number


def groups_of(rows: Sequence[Rescored]) -> list[list[Rescored]]:
    """The groups with at least two samples that were not discarded."""
    groups: defaultdict[Hashable, list[Rescored]] = defaultdict(list)
    for row in rows:
        if row.group is not None and row.kept:
            groups[row.group].append(row)
    return [group for group in groups.values() if len(group) > 1]


def set_advantages(groups: Sequence[Sequence[Rescored]]) -> None:
    """Sets (reward - mean) / (std + 1e-6) within each group, for both rewards."""
    for group in groups:
        old, new = _normalised([row.old for row in group]), _normalised([row.new for row in group])
        for row, pair in zip(group, zip(old, new, strict=True), strict=True):
            row.advantages = pair


def _normalised(rewards: list[float]) -> list[float]:
    """Equal rewards get exactly 0, which rounding in the mean might miss."""
    if _flat(rewards):
        return [0.0] * len(rewards)
    return group_normalised(rewards, [True] * len(rewards), size=len(rewards), by_deviation=True)


def _flat(rewards: Sequence[float]) -> bool:
    return max(rewards) - min(rewards) <= SAME


def table(rows: Sequence[Rescored], groups: Sequence[Sequence[Rescored]], name: str) -> str:
    """Both rewards side by side, and the changes of the advantages' signs; `name` names the new reward."""
    kept = [row for row in rows if row.kept]
    parts = list(dict.fromkeys(row.part for row in kept))
    lines = [_line("mean reward", [(row.old, row.new) for row in kept])]
    for part in parts if len(parts) > 1 else ():
        lines.append(_line(f"  {part}", [(row.old, row.new) for row in kept if row.part == part]))
    lines.append(_line("share above 0", [(row.old > SAME, row.new > SAME) for row in kept]))
    advantages = [row.advantages for row in kept if row.advantages]
    if groups:
        flat = [(_flat([row.old for row in group]), _flat([row.new for row in group])) for group in groups]
        lines.append(_line("groups without variance", flat))
        lines.append(_line("mean |advantage|", [(abs(old), abs(new)) for old, new in advantages]))
    changed = sum(abs(row.new - row.old) > SAME for row in rows)
    counts = f"{len(rows):,} samples, {changed:,} with another reward ({changed / len(rows):.1%})"
    if discarded := len(rows) - len(kept):
        counts += f"; {discarded:,} discarded samples keep theirs and are left out of all means"
    shown = aligned(["", "recorded", name, "change"], lines)
    return "\n".join(["", *shown, "", counts, _signs(advantages, len(groups))])


def _line(title: str, pairs: Sequence[tuple[float, float]]) -> list[str]:
    old, new = (statistics.fmean(values) for values in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return [title, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"]


def _signs(advantages: Sequence[tuple[float, float]], groups: int) -> str:
    if not groups:
        return "no groups: no two samples have the same `group_index`, so there are no advantages"
    signs = [(_sign(old), _sign(new)) for old, new in advantages]
    turns = Counter(f"{old} to {new}" for old, new in signs if old != new)
    listed = ", ".join(f"{turn} {count:,}" for turn, count in sorted(turns.items())) or "none"
    changes = f"advantages that change sign: {turns.total():,} of {len(signs):,} ({listed})"
    return f"groups compared: {groups:,}; {changes}"


def _sign(value: float) -> str:
    return "0" if abs(value) <= SAME else "+" if value > 0 else "-"
