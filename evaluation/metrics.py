"""The metrics of one trajectory, and their means over questions with bootstrap intervals."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import qa_em_format
from search_rollout.samples.record import record_of

METRICS = {  # each is a number per question, averaged over questions
    "em": "exact match",
    "f1": "F1 of words, against the best gold answer",
    "sub_em": "the answer contains a gold answer",
    "valid_format": "kept to the protocol, and answered",
    "searches": "queries that were run",
    "failed_searches": "queries that failed",
    "turns": "engine calls",
    "gold_found": "a retrieved document contains a gold answer",
    "truncated": "ran out of turns or tokens before an answer",
    "gave_up": "discarded, for no fault of the model; the log says why",
    "reward": "the reward that training would give",
    "response_tokens": "tokens of the trajectory, including observations",
}
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def scores_of(sample: Any, golds: Sequence[str]) -> dict[str, Any]:
    """Every metric of one rewarded slime Sample, and its `answer` (None if it gave none)."""
    record = record_of(sample)
    assert record is not None  # ours
    score = record.score or {}
    answer, gave_up = score.get("answer"), record.discarded
    return {
        "answer": answer,
        "em": float(qa_em_format.exact_match(answer, golds)),
        "f1": float(qa_em_format.f1(answer, golds)),
        "sub_em": float(qa_em_format.sub_em(answer, golds)),
        "valid_format": float(score.get("valid_format", False)),
        "searches": float(len(record.searches)),
        "failed_searches": float(sum(bool(result.error) for result in record.searches)),
        "turns": float(record.model_turns),
        "gold_found": float(score.get("retrieved_gold", False)),
        "truncated": float(sample.status is sample.Status.TRUNCATED and not gave_up),
        "gave_up": float(gave_up),
        "reward": float(sample.reward),
        "response_tokens": float(0 if gave_up else sample.response_length),
    }


def summarise(
    scores: Mapping[str, Sequence[Mapping[str, Any]]], seed: int = 0, metrics: Sequence[str] = tuple(METRICS)
) -> dict[str, dict[str, Estimate]]:
    """Set → metric → estimate; "average" is the mean of the sets' means, with equal weights.

    A row is a question, with the scores of its samples combined, so the bootstrap draws whole questions.
    """
    tables = {name: np.array([[row[key] for key in metrics] for row in rows]) for name, rows in scores.items()}
    means = {name: table.mean(axis=0) for name, table in tables.items()}
    draws = {name: resampled_means(table, name, seed) for name, table in tables.items()}
    if len(tables) > 1:
        means["average"] = np.mean(list(means.values()), axis=0)
        draws["average"] = np.mean(list(draws.values()), axis=0)
    return {
        name: {
            key: Estimate(float(means[name][column]), *interval(draws[name][:, column]))
            for column, key in enumerate(metrics)
        }
        for name in means
    }


def resampled_means(table: np.ndarray, name: str, seed: int) -> np.ndarray:
    """(RESAMPLES, M) means of questions drawn with replacement from `table` (N, M); each set's draws are repeatable."""
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    count = len(table)
    return np.array([table[random.integers(0, count, count)].mean(axis=0) for _ in range(RESAMPLES)])


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
