"""Compares two evaluations question by question.

    search-r1 compare runs/eval-base runs/eval-step100
    search-r1 compare runs/demo-…                       a demo run: its model before and after GRPO
    search-r1 compare runs/demo-…seed0 runs/demo-…seed1    two demo runs: their models after GRPO

For each set and for all questions together it prints

- exact match of both runs, and their difference with its 95 % paired bootstrap interval;
- the p-value of McNemar's exact test: if neither run is better, how likely so uneven a split is among the questions
  that only one run has right.

Only questions that both runs asked are compared. If each was asked several times, exact match is the mean over its
samples, the test counts which run's mean is higher, and pass@k and majority@n follow.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.metrics import interval, resampled_means, together
from evaluation.options import command_parser
from evaluation.records import is_demo_run, key_of, read_records, write_json
from evaluation.report import aligned, cells
from evaluation.terminal import exit_code

ALL = "all questions"


class Comparison(NamedTuple):
    """Exact match of two runs on the same questions."""

    questions: int
    first: float
    second: float
    low: float  # of second - first, 95 %
    high: float
    only_first: int  # questions that only the first run has right; with several samples: better there
    only_second: int
    p_value: float


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value; under the null hypothesis each discordant question is a fair coin toss."""
    count = only_first + only_second
    tail = sum(math.comb(count, few) for few in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**count)


def compare(first: Sequence[float], second: Sequence[float], name: str = "", seed: int = 0) -> Comparison:
    """Compares two runs' exact match (0 to 1) per question, in the same order."""
    pairs = np.array([first, second]).T  # (N, 2)
    difference = (pairs[:, 1] - pairs[:, 0])[:, None]
    low, high = interval(resampled_means(difference, name, seed)[:, 0])
    only_first, only_second = int((difference < 0).sum()), int((difference > 0).sum())
    means = pairs.mean(axis=0)
    p_value = mcnemar(only_first, only_second)
    return Comparison(len(pairs), float(means[0]), float(means[1]), low, high, only_first, only_second, p_value)


def compare_runs(first: Path, second: Path | None = None) -> tuple[dict[str, Comparison], int]:
    """Set → comparison, all questions last; and the number of questions that only one run has completed.

    If both asked each question several times, exact match is the mean over the samples, and "SET, pass@k" and
    "SET, majority@n" follow if both runs have them. Without `second`, `first` is a demo run: its models before and
    after GRPO are compared. Raises ValueError if a folder is not a run, or if the runs share no question.
    """
    if second is None and not is_demo_run(first):
        raise ValueError(f"{first} is not the folder of a demo run; name a second evaluation to compare it with.")
    sides = [(first, "before" if second is None else "after"), (second or first, "after")]
    recorded = [read_records(folder, phase) for folder, phase in sides]
    if second is None and not recorded[1]:
        raise ValueError(f"The run in {first} has not reached its last evaluation.")
    runs = [_questions(records) for records in recorded]
    shared = sorted(runs[0].keys() & runs[1].keys())
    if not shared:
        raise ValueError(f"{first} and {second} have no question in common.")
    by_set: defaultdict[str, list[str]] = defaultdict(list)
    source_of = {record["id"]: record["data_source"] for record in recorded[0]}
    for question in shared:
        by_set[source_of[question]].append(question)
    groups = dict(sorted(by_set.items())) | ({ALL: shared} if len(by_set) > 1 else {})
    measures = [name for name in runs[0][shared[0]] if name in runs[1][shared[0]]]
    found = {}
    for name, group in groups.items():
        for measure in measures:
            ones, others = ([run[question][measure] for question in group] for run in runs)
            found[name if measure == "em" else f"{name}, {measure}"] = compare(ones, others, name)
    return found, len(runs[0].keys() ^ runs[1].keys())


def _questions(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Question → its measures over all samples. Skips an interrupted run's questions that lack samples."""
    samples: defaultdict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        question, number = key_of(record)
        samples[question][number] = record["scores"]
    count = max(map(len, samples.values()), default=0)
    return {question: together(list(rows.values()), ["em"]) for question, rows in samples.items() if len(rows) == count}


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("compare", __doc__)
    parser.add_argument("first", type=Path, help="folder of an evaluation or a demo run")
    parser.add_argument("second", type=Path, nargs="?", help="another folder, with the same data")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes its figures."""
    found, unpaired = compare_runs(options.first, options.second)
    if options.json:
        write_json(options.json, {name: comparison._asdict() for name, comparison in found.items()})
    header = ["set", "questions", "first", "second", "difference", "95 % interval", "only first", "only second", "p"]
    rows = []
    for name, one in found.items():
        difference = cells(one.second - one.first, one.low, one.high, "+")
        only = [str(one.only_first), str(one.only_second), f"{one.p_value:.2g}"]
        rows.append([name, str(one.questions), f"{one.first:.3f}", f"{one.second:.3f}", *difference, *only])
    print("\n".join(aligned(header, rows)))
    if unpaired:
        print(f"{unpaired} questions are left out because only one of the runs has them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
