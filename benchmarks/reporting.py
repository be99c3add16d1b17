"""What all benchmarks print: tables, bounds that held or not, and the same figures as JSON."""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tokenizers warn when a process is made after their first use


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with --json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write figures and ratios to this file as well")
    return made


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table, columns aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")


def finish(args: argparse.Namespace, figures: dict[str, Any], bounds: Iterable[tuple[str, bool]]) -> int:
    """Prints whether each bound held, writes --json with the machine and the day; returns the exit status."""
    bounds = list(bounds)
    print()
    for text, held in bounds:
        print(f"{'ok  ' if held else 'MISS'} {text}")
    if args.json is not None:
        machine = {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
        record = {"date": time.strftime("%Y-%m-%d"), "machine": machine, **figures}
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if all(held for _, held in bounds) else 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
