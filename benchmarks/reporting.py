"""What all benchmarks share: a table on the terminal, and the same figures as JSON."""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures with the machine and the day; nothing if no file was asked for."""
    if path is None:
        return
    machine = {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    record = {"date": time.strftime("%Y-%m-%d"), "machine": machine, **figures}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def verdict(text: str, held: bool) -> str:
    """A line that says whether a bound held."""
    return f"{'ok  ' if held else 'MISS'} {text}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
