"""Reads recorded trajectories as slime's Samples without a reward, to score them again."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.rescored import Rescored
from evaluation.sample_files import read_all
from qa_em_format import gold_answers
from search_rollout.samples.record import METADATA_KEY, is_discarded


def read_recorded(
    files: Sequence[Path], reward_key: str | None, left_out: defaultdict[str, int], *, ours: bool, trust_pickle: bool
) -> Iterator[tuple[Any, Rescored]]:
    """Each sample that can be scored again, as slime's Sample, and its row with the recorded reward as the new one.

    `left_out` counts the others by reason. `ours`: score with this plugin's reward, which needs a gold answer. Raises
    ValueError that names file and line.
    """
    for file, (fields, _, where) in read_all(files, "scoring", trust_pickle=trust_pickle):
        reason = _unusable(fields) if ours else None
        if fields.get("reward") is None:
            reason = "without a recorded reward (aborted)"
        if reason:
            left_out[reason] += 1
            continue
        part = (file, fields.get("phase"))  # a demo's log has a phase for each step
        group = None if fields.get("group_index") is None else (*part, fields["group_index"])
        reward, sample = reward_value(fields["reward"], reward_key, where), _sample(fields, where)
        kept = not is_discarded(sample)
        yield sample, Rescored(where, part[1] or file.name, sample.index, group, kept, reward, reward)


def _unusable(fields: Mapping[str, Any]) -> str | None:
    """Why our reward cannot score a sample."""
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
