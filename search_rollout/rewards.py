"""Rewards relative to their group, as GRPO has them, without samples that say nothing about the model."""

import statistics
from collections.abc import Sequence


def group_normalised(rewards: Sequence[float], kept: Sequence[bool], *, size: int, by_deviation: bool) -> list[float]:
    """(r - mean) / (std + 1e-6) within each `size` neighbours, over those that are kept, std with n - 1; else r - mean.

    0 for what is not kept, and for what is the only one of its group: there is nothing to compare it with.
    """
    normalised = [0.0] * len(rewards)
    for start in range(0, len(rewards), size):
        places = [place for place in range(start, min(start + size, len(rewards))) if kept[place]]
        if len(places) < 2:
            continue
        mean = statistics.fmean(rewards[place] for place in places)
        scale = statistics.stdev(rewards[place] for place in places) + 1e-6 if by_deviation else 1.0
        for place in places:
            normalised[place] = (rewards[place] - mean) / scale
    return normalised
