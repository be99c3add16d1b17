"""Prints a table of several demo runs, and the pooled gain in exact match over all their held-out questions.

python -m demo.compare_seeds runs/demo-…-seed0 runs/demo-…-seed1 runs/demo-…-seed2
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.run_folder import paired_gain
from evaluation.records import read_json
from evaluation.terminal import exit_code


def main(argv: list[str] | None = None) -> int:
    """Prints the table as Markdown; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    folders = parser.parse_args(argv).runs
    return exit_code(lambda: compare(folders))


def compare(folders: Sequence[Path]) -> int:
    """Prints a row for each run, and the pooled gain. Raises ValueError if a run did not finish."""
    summaries = {folder: read_json(folder / "summary.json") for folder in folders}
    for folder, summary in summaries.items():
        if "gain" not in summary:
            raise ValueError(f"{folder} is not the folder of a run that reached its last evaluation.")
    print("| seed | steps | seconds | exact match before → after | valid format | searches per question | gain |")
    print("|---|---|---|---|---|---|---|")
    before: list[bool] = []
    after: list[bool] = []
    for folder, summary in summaries.items():
        early, late, gain = summary["before"], summary["after"], summary["gain"]
        print(
            f"| {summary['seed']} | {summary['steps']} | {summary['seconds']:.0f} "
            f"| {early['exact_match']:.3f} → {late['exact_match']:.3f} "
            f"| {early['valid_format']:.3f} → {late['valid_format']:.3f} "
            f"| {early['searches_per_question']:.2f} → {late['searches_per_question']:.2f} "
            f"| {gain['exact_match']:+.3f} |"
        )
        rows = map(json.loads, (folder / "evaluation.jsonl").read_text(encoding="utf-8").splitlines())
        outcomes = {(row["phase"], row["id"]): row["exact_match"] for row in rows}
        before += (right for (phase, _), right in outcomes.items() if phase == "before")
        after += (outcomes["after", question] for phase, question in outcomes if phase == "before")
    pooled = paired_gain(before, after)
    low, high = pooled["ci95"]
    print(f"\nPooled over {len(before)} questions:", end=" ")
    print(f"{pooled['exact_match']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
