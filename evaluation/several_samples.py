"""Scores of a question that was asked several times: mean, pass@k and majority vote.

    avg@n        mean over the n samples; estimates pass@1
    pass@k       probability that one of k samples is right: 1 - C(n - c, k) / C(n, k) if c of n are right
                 (unbiased; Chen et al. 2021, arXiv:2107.03374, equation 1)
    majority@n   whether the most frequent answer is right (Wang et al. 2022, arXiv:2203.11171)

Answers are the same if they are equal after SQuAD's normalisation; a sample without an answer has no vote. A tie scores
the share of the tied answers that are right, as if one of them were drawn.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qa_em_format import normalize_answer


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that k of these samples, drawn without replacement, include a right one. Raises ValueError."""
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} is not defined for {right} right samples of {samples}.")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: Sequence[str | None], right: Sequence[float]) -> float:
    """1.0 if the most frequent answer is right, 0.0 if not, in between for ties. `right` has 1.0 or 0.0 per answer."""
    names = [answer and (normalize_answer(answer) or answer.strip().casefold()) for answer in answers]
    votes = Counter(name for name in names if name)
    if not votes:
        return 0.0
    verdicts = dict(zip(names, right, strict=True))  # equal answers are all right or all wrong
    tied = [name for name, count in votes.items() if count == max(votes.values())]
    return sum(verdicts[name] for name in tied) / len(tied)


def drawn(samples: int) -> list[int]:
    """The values of k to show: 2, 4, 8, … and `samples`; empty for a single sample, which is pass@1."""
    return sorted({*(2**power for power in range(1, samples.bit_length())), samples}) if samples > 1 else []


def measures(samples: int) -> list[str]:
    """The keys that `together` adds for a question with several samples."""
    return [f"pass@{k}" for k in drawn(samples)] + ([f"majority@{samples}"] if samples > 1 else [])


def together(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ("em",)) -> dict[str, float]:
    """The scores of one question: the means of `metrics` over its samples, then `measures`."""
    count = len(rows)
    found = {name: sum(row[name] for row in rows) / count for name in metrics}
    if count > 1:
        right = [row["em"] for row in rows]
        found |= {f"pass@{k}": pass_at_k(count, int(sum(right)), k) for k in drawn(count)}
        found[f"majority@{count}"] = majority([row.get("answer") for row in rows], right)
    return found
