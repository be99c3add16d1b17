"""The metrics of a trajectory and of a question's samples, and their means over questions with bootstrap intervals.

Of a question that was asked n times:

    avg@n        mean over the n samples; estimates pass@1
    pass@k       probability that one of k samples is right: 1 - C(n - c, k) / C(n, k) if c of n are right
                 (unbiased; Chen et al. 2021, arXiv:2107.03374, equation 1)
    majority@n   whether the most frequent answer is right (Wang et al. 2022, arXiv:2203.11171)

Answers are the same if they are equal after SQuAD's normalisation; a sample without an answer has no vote. A tie scores
the share of the tied answers that are right, as if one of them were drawn.
"""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import qa_em_format
from search_rollout.samples.record import record_of

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def scores_of(sample: Any, golds: Sequence[str]) -> dict[str, Any]:
    """The metrics of one rewarded slime Sample, all numbers, and its `answer` (None if it gave none)."""
    record = record_of(sample)
    assert record is not None  # ours
    score = record.score or {}
    answer, gave_up = score.get("answer"), record.discarded
    return {
        "answer": answer,
        "em": float(qa_em_format.exact_match(answer, golds)),
        "f1": float(qa_em_format.f1(answer, golds)),
        "sub_em": float(qa_em_format.sub_em(answer, golds)),  # the answer contains a gold answer
        "valid_format": float(score.get("valid_format", False)),  # kept to the protocol, and answered
        "searches": float(len(record.searches)),
        "failed_searches": float(sum(bool(result.error) for result in record.searches)),
        "turns": float(record.model_turns),
        "gold_found": float(score.get("retrieved_gold", False)),  # a retrieved document contains a gold answer
        "truncated": float(sample.status is sample.Status.TRUNCATED and not gave_up),  # no answer in turns and tokens
        "gave_up": float(gave_up),  # discarded, for no fault of the model; the log says why
        "reward": float(sample.reward),
        "response_tokens": float(0 if gave_up else sample.response_length),  # including observations
    }


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that k of these samples, drawn without replacement, include a right one. Raises ValueError."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} is not defined for {right} right samples of {samples}.")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: Sequence[str | None], right: Sequence[float]) -> float:
    """1.0 if the most frequent answer is right, 0.0 if not, in between for ties. `right` has 1.0 or 0.0 per answer."""
    names = [answer and (qa_em_format.normalize_answer(answer) or answer.strip().casefold()) for answer in answers]
    votes = Counter(name for name in names if name)
    if not votes:
        return 0.0
    verdicts = dict(zip(names, right, strict=True))  # equal answers are all right or all wrong
    tied = [name for name, count in votes.items() if count == max(votes.values())]
    return sum(verdicts[name] for name in tied) / len(tied)


def drawn(samples: int) -> list[int]:
    """The values of k to show: 2, 4, 8, … and `samples`; empty for a single sample, which is pass@1."""
    return sorted({*(2**power for power in range(1, samples.bit_length())), samples}) if samples > 1 else []


def together(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ()) -> dict[str, float]:
    """The scores of one question: means of `metrics` (default: all) over its samples, then pass@k and majority@n."""
    count = len(rows)
    metrics = metrics or [name for name in rows[0] if name != "answer"]
    found = {name: sum(row[name] for row in rows) / count for name in metrics}
    if count > 1:
        right = [row["em"] for row in rows]
        found |= {f"pass@{k}": pass_at_k(count, int(sum(right)), k) for k in drawn(count)}
        found[f"majority@{count}"] = majority([row.get("answer") for row in rows], right)
    return found


def summarise(scores: Mapping[str, Sequence[Mapping[str, float]]], seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Set → metric → estimate; "average" is the mean of the sets' means, with equal weights.

    A row is a question, with the scores of its samples combined, so the bootstrap draws whole questions. All rows have
    the same metrics.
    """
    metrics = list(next(iter(scores.values()))[0])
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
