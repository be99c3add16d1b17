"""Prints the results of checks as rows with aligned columns, wrapped and coloured for the terminal.

`preflight` and `audit-tokens` use it. Standard library only, because preflight reports missing packages.
"""

import os
import shutil
import textwrap
from collections import Counter
from typing import Literal, NamedTuple, TextIO, TypeAlias

Mark: TypeAlias = Literal["✓", "✗", "!", "–"]

PIPED_WIDTH = 120  # characters
MIN_WIDTH = 60
NAME_WIDTH = 17  # of the longest name
GROUP_WIDTH = 8
COLOURS = {"✓": "32", "✗": "31", "!": "33", "–": "2"}
WORDS = {"✓": "passed", "✗": "failed", "!": "warnings", "–": "skipped"}


class Finding(NamedTuple):
    """The result of one check. Only ✗ and ! have a `remedy`; its indented lines are commands."""

    mark: Mark
    found: str
    remedy: str = ""


class Row(NamedTuple):
    group: str
    name: str
    finding: Finding


class Table:
    """Writes rows to a stream as they arrive, and the count at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._width = max(shutil.get_terminal_size().columns, MIN_WIDTH) if self._terminal else PIPED_WIDTH
        self.marks: Counter[str] = Counter()

    def write(self, row: Row) -> None:
        """One row, with the remedy below the finding."""
        mark, found, remedy = row.finding
        self.marks[mark] += 1
        head = f" {row.group:<{GROUP_WIDTH}} {row.name:<{NAME_WIDTH}} "
        margin = " " * (1 + len(head))
        text = self._wrapped(found, margin, margin).removeprefix(margin)
        in_colour = self._terminal and not os.environ.get("NO_COLOR")
        shown = f"\033[{COLOURS[mark]}m{mark}\033[0m" if in_colour else mark
        print(f"{shown}{head}{text}", file=self._stream, flush=not remedy)
        if remedy:
            print(self._wrapped(remedy, f"{margin}→ ", f"{margin}  "), file=self._stream, flush=True)

    def write_count(self, seconds: float) -> None:
        counted = ", ".join(f"{self.marks[mark]} {word}" for mark, word in WORDS.items() if self.marks[mark])
        print(f"{counted} ({seconds:.1f} s)", file=self._stream, flush=True)

    def _wrapped(self, text: str, first: str, margin: str) -> str:
        wrapper = textwrap.TextWrapper(
            self._width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
        )
        lines: list[str] = []
        for line in text.split("\n"):
            wrapper.initial_indent = margin if lines else first
            is_command = line.startswith("    ")  # never wrapped, so that it can be copied
            lines.append(margin + line if is_command else wrapper.fill(line))
        return "\n".join(lines)
