"""What all benchmarks share: the command line, tables, bounds that held or not, and the same figures as JSON."""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from evaluation.interruption import terminating_interrupts
from evaluation.terminal import exit_code

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers warn when a process is made after their first use


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with --json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write figures and ratios to this file as well")
    return made


class Report:
    """What one benchmark found: printed as it comes, and written as JSON by `finish`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.figures: dict[str, Any] = {}
        self._bounds: list[dict[str, Any]] = []

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of column → figure, as an aligned Markdown table."""
        self.figures[title] = rows
        cells = [list(rows[0]), *([_shown(figure) for figure in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"{title}\n")
        for number, row in enumerate(cells):
            print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
            if number == 0:
                print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
        print(flush=True)

    def bound(self, text: str, figure: float, *, least: float = -math.inf, most: float = math.inf) -> None:
        """Whether a figure keeps its bound; the text names it by `{}`."""
        held = least <= figure <= most
        limit = f"at least {_shown(least)}" if most == math.inf else f"at most {_shown(most)}"
        print(f"{'ok  ' if held else 'MISS'} {text.format(_shown(figure))} ({limit})", flush=True)
        self._bounds.append({"bound": text, "figure": figure, "limit": limit, "held": held})

    def finish(self) -> int:
        """Writes --json with the machine and the day; returns 1 if a bound was missed."""
        if self.args.json is not None:
            machine = {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
            record = {"date": time.strftime("%Y-%m-%d"), "machine": machine, **self.figures, "bounds": self._bounds}
            self.args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return 0 if all(bound["held"] for bound in self._bounds) else 1


def run(measure: Callable[[Report], None], options: argparse.ArgumentParser) -> NoReturn:
    """A benchmark's command line; the exit status is 1 if a bound was missed, or after an error."""
    terminating_interrupts()  # so that servers are stopped
    report = Report(options.parse_args())

    def measure_all() -> int:
        measure(report)
        return report.finish()

    sys.exit(exit_code(measure_all))


def _shown(figure: object) -> str:
    """Numbers with three digits that count."""
    if not isinstance(figure, float) or not math.isfinite(figure):
        return "" if figure is None else str(figure)
    return f"{figure:.{max(0, 2 - math.floor(math.log10(abs(figure) or 1.0)))}f}"


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
