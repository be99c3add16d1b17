"""When the collapse guard speaks: before exact match is lost, or for nothing.

    python -m benchmarks.bench_collapse_guard [runs/demo-… …]

Replays recorded series, those of benchmarks/collapses.json or of demo runs (steps.jsonl), through the guard's rule.
tests/rollout/test_collapse_guard.py checks that it notices each recorded collapse, and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.reporting import Report, parser, run
from search_rollout.collapse_guard import MARGINS, CollapseGuard

RECORDED = Path(__file__).with_name("collapses.json")
LOST = 0.05  # exact match below it: there is nothing left to save


class Replay(NamedTuple):
    """What the guard did in one run; steps count from 1."""

    alarm: int | None  # the step in which the rule was met
    lost: int | None  # the first step whose exact match was below LOST


def replay(series: Mapping[str, Sequence[float]]) -> Replay:
    """The guard over a run's series, one value per step."""
    guard, alarm, lost = CollapseGuard(), None, None
    for step, values in enumerate(zip(*series.values(), strict=True), start=1):
        now = dict(zip(series, values, strict=True))
        if guard.observe(step, now):
            alarm = alarm or step
        if now["exact_match"] < LOST:
            lost = lost or step
    return Replay(alarm, lost)


def series_of_run(folder: Path) -> dict[str, list[float]]:
    """The series of a demo run, of the steps that have all of them. Raises ValueError."""
    names = ("exact_match", *MARGINS)
    try:
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if all(name in row for name in names)]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not the folder of a demo run ({error}).") from error
    return {name: [row[name] for row in rows] for name in names}


def measure(report: Report) -> None:
    """A row for each run: whether it collapsed, and what the guard did."""
    runs: list[dict[str, Any]] = [
        {"name": folder.name, "collapsed": "?", "series": series_of_run(folder)} for folder in report.args.runs
    ]
    rows = []
    for recorded in runs or json.loads(RECORDED.read_text(encoding="utf-8")):
        series = recorded["series"]
        found = replay(series)
        row = {"run": recorded["name"], "collapsed": recorded["collapsed"], "steps": len(series["exact_match"])}
        rows.append({**row, "alarm in step": found.alarm, "exact match lost in step": found.lost})
    report.table("the guard over recorded runs", rows)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("runs", nargs="*", type=Path, help="demo runs (default: the recorded series)")
    run(measure, options)
