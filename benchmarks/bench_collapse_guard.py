"""When the collapse guard speaks: before exact match is lost, or for nothing.

    python -m benchmarks.bench_collapse_guard [runs/demo-… …]

Replays recorded series, those of benchmarks/collapses.json or of demo runs (steps.jsonl), through the guard's rule.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.reporting import finish, parser, print_table
from search_rollout.collapse_guard import CollapseGuard

RECORDED = Path(__file__).with_name("collapses.json")
LOST = 0.05  # exact match below it: there is nothing left to save


class Replay(NamedTuple):
    """What the guard did in one run; steps count from 1."""

    name: str
    collapsed: bool | None  # None: not known
    steps: int
    alarm: int | None  # the step in which the rule was met
    lost: int | None  # the first step whose exact match was below LOST

    @property
    def warning(self) -> str:
        """How many steps before the loss the alarm was."""
        if self.alarm is None:
            return "-"
        return f"{self.lost - self.alarm} earlier" if self.lost else "before it was lost"


def replay(name: str, collapsed: bool | None, series: Mapping[str, Sequence[float]]) -> Replay:
    """The guard over a run's series, one value per step."""
    guard, steps = CollapseGuard(), len(series["exact_match"])
    alarms = [
        step
        for step in range(1, steps + 1)
        if guard.observe(step, {key: values[step - 1] for key, values in series.items()})
    ]
    lost = (step for step, value in enumerate(series["exact_match"], start=1) if value < LOST)
    return Replay(name, collapsed, steps, next(iter(alarms), None), next(lost, None))


def series_of_run(folder: Path) -> dict[str, list[float]]:
    """The series of a demo run, of the steps that have all of them. Raises ValueError."""
    names = ("exact_match", "valid_format", "truncated", "repetition", "log_prob")
    try:
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if all(name in row for name in names)]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not the folder of a demo run ({error}).") from error
    return {name: [row[name] for row in rows] for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Replays and prints; the exit status is 1 if a bound was missed."""
    options = parser(__doc__)
    options.add_argument("runs", nargs="*", type=Path, help="demo runs (default: the recorded series)")
    args = options.parse_args(argv)
    try:
        given: list[tuple[str, bool | None, Any]] = [(run.name, None, series_of_run(run)) for run in args.runs]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    known = [(run["name"], run["collapsed"], run["series"]) for run in recorded]
    found = [replay(*run) for run in given or known]
    words = {True: "yes", False: "no", None: "?"}
    print_table(
        ["run", "collapsed", "steps", "alarm in step", "exact match lost in step", "warning"],
        [[run.name, words[run.collapsed], run.steps, run.alarm or "-", run.lost or "-", run.warning] for run in found],
    )
    bounds = [] if given else bounds_of(found)
    return finish(args, {"runs": [run._asdict() for run in found]}, bounds)


def bounds_of(found: Sequence[Replay]) -> list[tuple[str, bool]]:
    """Every collapse is noticed before exact match is lost, and nothing else is."""
    collapsed, healthy = ([run for run in found if run.collapsed is kind] for kind in (True, False))
    in_time = [run for run in collapsed if run.alarm and (run.lost is None or run.alarm < run.lost)]
    for_nothing = [run for run in healthy if run.alarm]
    steps = sum(run.steps for run in healthy)
    return [
        (f"noticed before exact match was lost: {len(in_time)} of {len(collapsed)} collapses", in_time == collapsed),
        (f"alarms for nothing: {len(for_nothing)} in {steps} steps of healthy runs", not for_nothing),
    ]


if __name__ == "__main__":
    sys.exit(main())
