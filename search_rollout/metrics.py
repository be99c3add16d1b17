"""What a batch of finished rollouts says about a training run, as figures for a plot: docs/METRICS.md describes each.

Computes only, from slime's Samples and the records in their metadata. A sample without a readable record is counted as
such. A figure that no sample has data for is left out, so no NaN is ever plotted. A discarded rollout says nothing
about the model: it counts in `discarded`, `stop/…` and the shares of searches, and nowhere else.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any

from search_rollout.samples.record import RolloutRecord, Span, record_of
from search_rollout.search.searcher import normalised
from search_rollout.trajectory import StopReason

REPETITION_N = 4  # tokens: the seq-rep-4 of arXiv:1908.04319
MEANS = (  # over the samples that have the figure
    *("reward", "exact_match", "answers", "valid_format", "gold_in_documents", "turns", "searches"),
    *("response_length", "trained_tokens", "observation_tokens", "repetition"),
)
Row = dict[str, Any]  # a sample's figures


def rollout_metrics(samples: Iterable[Any], reward_key: str | None = None) -> dict[str, float]:
    """The series of slime Samples, which may be nested in groups. Never raises, whatever a sample contains.

    `reward_key` is slime's --reward-key, for rewards that are dicts.
    """
    everything = list(flat(samples))
    rows = [row for sample in everything if (row := _row(sample, reward_key)) is not None]
    kept = [row for row in rows if not row["stop"].discards]
    return _known(
        {
            "unrecorded": _ratio(len(everything) - len(rows), len(everything)),
            **_endings(rows),
            **{name: _mean(row[name] for row in kept) for name in MEANS},
            "valid_actions": _share(kept, "valid_turns", "turns"),
            "duplicate_queries": _share(kept, "duplicates", "searches"),
            "observation_share": _share(kept, "observation_tokens", "response_length"),
            "response_length_max": max((row["response_length"] for row in kept), default=None),
            "log_prob": _mean(log_prob for row in kept for log_prob in row["log_probs"]),
            **_groups(rows),
            **_searches(rows),
        }
    )


def search_cost(usage: Mapping[str, float], *, since: Mapping[str, float]) -> dict[str, float]:
    """The series of what searching cost between two `SearchUsage.snapshot()`; no price where nothing was paid."""
    spent = {"search_calls": usage["search/calls"] - since["search/calls"]}
    if usage["search/usd"]:
        spent["search_usd"] = usage["search/usd"] - since["search/usd"]
        spent["search_usd_total"] = usage["search/usd"]
    return _known(spent)


# --- one sample ---


def _row(sample: Any, reward_key: str | None) -> Row | None:
    """None for a sample that was not rolled out by this plugin, or whose record is damaged."""
    try:
        record = record_of(sample)
        return _read(sample, record, reward_key) if record else None
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None


def _read(sample: Any, record: RolloutRecord, reward_key: str | None) -> Row:
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    authors = list(islice(_authors(record.spans), len(response) + 1))
    by_model = [token for token, ours in zip(response, authors, strict=not record.discarded) if ours]
    observations = [span.tokens for span in record.spans if span.kind == "observation"]
    queries, score = [normalised(result.query) for result in record.searches], record.score
    hash(sample.group_index)  # groups are told apart by it
    return {
        "stop": record.stop,
        "group": sample.group_index,  # None: no group
        "reward": _reward(sample.reward, reward_key),
        "exact_match": bool(score.get("exact_match")) if score else None,
        "answers": score.get("answer") is not None if score else None,
        "valid_format": bool(score.get("valid_format")) if score else None,
        "gold_in_documents": bool(score.get("retrieved_gold")) if score else None,
        "turns": record.model_turns,
        "valid_turns": len(observations) + (record.stop is StopReason.ANSWERED),
        "searches": len(queries),
        "duplicates": len(queries) - len(set(queries)),
        "counts": {name: int(record.search_counts[name]) for name in ("queries", "cache", "shared", "failed")},
        "seconds": [result.seconds for result in record.searches if result.origin != "cache"],
        "response_length": len(response),
        "observation_tokens": sum(observations),
        "trained_tokens": float(sum(sample.loss_mask or [])),
        "repetition": repetition(by_model),
        "log_probs": [
            float(log_prob) for log_prob, ours in zip(sample.rollout_log_probs or [], authors, strict=False) if ours
        ],
    }


def _authors(spans: Iterable[Span]) -> Iterator[bool]:
    """For each token of the response, whether the model wrote it."""
    return chain.from_iterable(repeat(kind == "turn", tokens) for kind, tokens in spans)


def _reward(reward: Any, reward_key: str | None) -> float | None:
    value = reward.get(reward_key) if isinstance(reward, Mapping) else reward
    return None if value is None else float(value)


def repetition(ids: Sequence[int], n: int = REPETITION_N) -> float | None:
    """1 - (distinct n-grams) / (n-grams): 0 without repetition, near 1 in a loop. None if there are no n-grams."""
    grams = len(ids) - n + 1
    return None if grams < 1 else 1 - len(set(zip(*(ids[start:] for start in range(n)), strict=False))) / grams


# --- many samples ---


def _endings(rows: Sequence[Row]) -> dict[str, float | None]:
    whole = len(rows)
    cut = (row["stop"] not in (StopReason.ANSWERED, StopReason.ABORTED) and not row["stop"].discards for row in rows)
    return {
        "truncated": _ratio(sum(cut), whole),
        "discarded": _ratio(sum(row["stop"].discards for row in rows), whole),
        **{f"stop/{stop.value}": _ratio(sum(row["stop"] is stop for row in rows), whole) for stop in StopReason},
    }


def _groups(rows: Sequence[Row]) -> dict[str, float | None]:
    groups = defaultdict(list)
    for row in rows:
        if row["group"] is not None and row["reward"] is not None:
            groups[row["group"]].append(row)
    compared = [group for group in groups.values() if len(group) > 1]
    kept = [[row for row in group if not row["stop"].discards] for group in compared]
    flat = [group for group in kept if len({row["reward"] for row in group}) < 2]
    right = sum(bool(group) and all(row["exact_match"] is True for row in group) for group in flat)
    wrong = sum(bool(group) and all(row["exact_match"] is False for row in group) for group in flat)
    return {
        "zero_variance_groups": _ratio(len(flat), len(compared)),
        "zero_variance_right": _ratio(right, len(compared)),
        "zero_variance_wrong": _ratio(wrong, len(compared)),
    }


def _searches(rows: Sequence[Row]) -> dict[str, float | None]:
    seconds = sorted(second for row in rows for second in row["seconds"])
    queries = sum(row["counts"]["queries"] for row in rows)
    return {
        "search_seconds": _mean(seconds),
        "search_seconds_p95": seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else None,
        "searches_failed": _ratio(sum(row["counts"]["failed"] for row in rows), queries),
        "cache_hits": _ratio(sum(row["counts"]["cache"] + row["counts"]["shared"] for row in rows), queries),
    }


# --- figures ---


def flat(samples: Any) -> Iterator[Any]:
    for sample in samples or ():
        if isinstance(sample, list | tuple):
            yield from flat(sample)
        else:
            yield sample


def _share(rows: Sequence[Row], part: str, whole: str) -> float | None:
    return _ratio(sum(row[part] for row in rows), sum(row[whole] for row in rows))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _ratio(math.fsum(known), len(known))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}
