"""Prints a table of several demo runs, and the pooled gain in exact match over all their held-out questions.

python -m demo.compare_seeds runs/demo-…-seed0 runs/demo-…-seed1 runs/demo-…-seed2
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from demo.run_folder import paired_gain


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, bool]]]:
    """A run's summary, and phase → question → exact match. Raises ValueError if the run did not finish."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines = (folder / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a run's folder: {error}") from error
    if "gain" not in summary:
        raise ValueError(f"The run in {folder} did not reach its last evaluation.")
    outcomes: dict[str, dict[str, bool]] = {"before": {}, "after": {}}
    for line in lines:
        row = json.loads(line)
        outcomes[row["phase"]][row["id"]] = row["exact_match"]
    return summary, outcomes


def main(argv: list[str] | None = None) -> int:
    """Prints the table as Markdown; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    try:
        runs = [read_run(folder) for folder in parser.parse_args(argv).runs]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("| seed | steps | seconds | exact match before → after | valid format | searches per question | gain |")
    print("|---|---|---|---|---|---|---|")
    before: list[bool] = []
    after: list[bool] = []
    for summary, outcomes in runs:
        early, late, gain = summary["before"], summary["after"], summary["gain"]
        print(
            f"| {summary['seed']} | {summary['steps']} | {summary['seconds']:.0f} "
            f"| {early['exact_match']:.3f} → {late['exact_match']:.3f} "
            f"| {early['valid_format']:.3f} → {late['valid_format']:.3f} "
            f"| {early['searches_per_question']:.2f} → {late['searches_per_question']:.2f} "
            f"| {gain['exact_match']:+.3f} |"
        )
        before += outcomes["before"].values()
        after += (outcomes["after"][question] for question in outcomes["before"])
    pooled = paired_gain(before, after)
    low, high = pooled["ci95"]
    print(f"\nPooled over {len(before)} questions:", end=" ")
    print(f"{pooled['exact_match']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
