"""Compares the arms of an exam question by question.

A figure is the ratio of two sums over questions, such as wasted searches to all searches. Its interval is the middle
95 % of 2,000 bootstrap draws of whole questions, so that all arms of a question are drawn together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import interval, resampled_means
from evaluation.report import aligned, cells
from qa_em_format import any_holds_gold
from search_rollout.samples.record import METADATA_KEY, RolloutRecord, read_record
from search_rollout.search.passage import Passage

MEASURED = ("em", "against", "searches", "gold_found")  # of each arm; `against` is its EM minus the retriever arm's
FIGURES = {  # name → numerator, denominator, whether it is a difference
    "exact match that searching adds, over finding nothing": ("over nothing", "questions", True),
    "exact match that searching adds, over closed book": ("over closed book", "questions", True),
    "exact match that each search adds": ("over nothing", "searches", True),
    "right answers that need search": ("needs search", "right", False),
    "wasted searches": ("wasted", "searches", False),
    "wrong passages believed": ("believed", "read random", False),
    "exact match that better passages would add": ("below gold", "questions", True),
}
DENOMINATORS = {"right": "right answers", "read random": "questions with random passages"}  # others as they are


@dataclass
class Figure:
    """A ratio of two sums over questions, with its 95 % interval; None if the denominator is 0."""

    value: float | None
    low: float | None
    high: float | None
    of: int  # the denominator


@dataclass
class Result:
    arms: dict[str, dict[str, Any]]  # of each: the number of `questions`, and its MEASURED figures
    figures: dict[str, Figure]


def examine(records: Mapping[str, Sequence[Mapping[str, Any]]], seed: int = 0) -> Result:
    """The figures from the trajectories of each arm. Only questions that all arms asked count."""
    arms = {name: {record["id"]: record for record in rows} for name, rows in records.items()}
    shared = sorted(set.intersection(*(set(arm) for arm in arms.values())))
    columns = _columns(arms, shared)
    draws = resampled_means(np.stack(list(columns.values()), axis=1), "exam", seed)  # (RESAMPLES, columns)
    drawn = dict(zip(columns, draws.T, strict=True))

    def figure(above: str, below: str = "questions") -> Figure:
        total = columns[below].sum()
        if not total:
            return Figure(None, None, None, 0)
        possible = drawn[below] > 0
        low, high = interval(drawn[above][possible] / drawn[below][possible])
        return Figure(float(columns[above].sum() / total), low, high, int(total))

    return Result(
        {name: {"questions": len(shared), **{key: figure(f"{name} {key}") for key in MEASURED}} for name in arms},
        {name: figure(above, below) for name, (above, below, _) in FIGURES.items() if above in columns},
    )


def _columns(arms: Mapping[str, Mapping[str, Mapping[str, Any]]], shared: Sequence[str]) -> dict[str, np.ndarray]:
    """Name → (N,) a number for each question, from arm → question id → a line of trajectories.jsonl."""

    def scores(arm: str, key: str) -> np.ndarray:
        return np.array([arms[arm][question]["scores"][key] for question in shared])

    real, nothing, closed = (scores(name, "em") for name in ("retriever", "nothing", "closed book"))
    without = np.maximum(nothing, closed)  # right without a passage in either arm
    columns = {"questions": np.ones(len(shared)), "right": real, "searches": scores("retriever", "searches")}
    for name in arms:
        columns |= {f"{name} {key}": scores(name, key) for key in ("em", "searches", "gold_found")}
        columns[f"{name} against"] = scores(name, "em") - real
    columns["over nothing"], columns["over closed book"] = real - nothing, real - closed
    columns["needs search"] = real * (1 - without)
    repeats = np.array([repeated_searches(_record(arms["retriever"][question])) for question in shared])
    columns["wasted"] = np.where(without > 0, columns["searches"], repeats)
    random = [arms["random"][question] for question in shared]
    columns["read random"] = np.array([any(_record(record).passages) for record in random], float)
    columns["believed"] = np.array([believes(record) for record in random], float)
    if "gold" in arms:
        columns["below gold"] = scores("gold", "em") - real
    return columns


def repeated_searches(record: RolloutRecord) -> int:
    """The number of searches without a passage that was new to the model, including empty and failed searches."""
    read: set[Passage] = set()
    count = 0
    for result in record.searches:
        count += read.issuperset(result.passages)
        read.update(result.passages)
    return count


def believes(record: Mapping[str, Any]) -> bool:
    """True if the answer is wrong but appears in a passage that the model read."""
    answer = record["scores"]["answer"]
    if not answer or record["scores"]["em"]:
        return False
    return any_holds_gold((f"{passage.title}\n{passage.text}" for passage in _record(record).passages), [answer])


def _record(record: Mapping[str, Any]) -> RolloutRecord:
    return read_record(record["metadata"][METADATA_KEY])


def tables(result: Result) -> list[str]:
    """A table of the arms, then one of what their differences mean."""
    header = ["arm", "questions", "EM", "95 % interval", "against retriever", "95 % interval", "searches", "gold found"]
    rows = [
        [
            name,
            str(arm["questions"]),
            *_cells(arm["em"]),
            *(["", ""] if name == "retriever" else _cells(arm["against"], "+")),
            f"{arm['searches'].value:.2f}",
            f"{arm['gold_found'].value:.3f}",
        ]
        for name, arm in result.arms.items()
    ]
    lines = []
    for name, figure in result.figures.items():
        _, below, is_difference = FIGURES[name]
        of = f"{figure.of} {DENOMINATORS.get(below, below)}"
        lines.append([name, *_cells(figure, "+" if is_difference else ""), of])
    return [*aligned(header, rows), "", *aligned(["", "", "95 % interval", "of"], lines)]


def _cells(figure: Figure, sign: str = "") -> list[str]:
    if figure.value is None or figure.low is None or figure.high is None:
        return ["-", "-"]
    return cells(figure.value, figure.low, figure.high, sign)
