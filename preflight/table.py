"""Rows as text: aligned columns, wrapped to the terminal; colour only there."""

import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from preflight.findings import Row

PIPED_WIDTH = 120  # characters
MIN_WIDTH = 60
NAME_WIDTH = 17  # of the longest name
GROUP_WIDTH = 8
COLOURS = {"✓": "32", "✗": "31", "!": "33", "–": "2"}
WORDS = {"✓": "passed", "✗": "failed", "!": "to be looked at", "–": "skipped"}


class Table:
    """Writes rows to a stream as they come, and the count at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._width = max(shutil.get_terminal_size().columns, MIN_WIDTH) if self._terminal else PIPED_WIDTH
        self.marks: Counter[str] = Counter()

    def write(self, row: Row) -> None:
        """One row; the remedy stands under what was found."""
        mark, found, remedy = row.finding
        self.marks[mark] += 1
        head = f" {row.group:<{GROUP_WIDTH}} {row.name:<{NAME_WIDTH}} "
        margin = " " * (1 + len(head))
        lines = list(self._wrapped(found, margin))
        if remedy:
            lines += self._wrapped(remedy, f"{margin}→ ", f"{margin}  ")
        lines[0] = self._coloured(mark) + head + lines[0].removeprefix(margin)
        print("\n".join(lines), file=self._stream, flush=True)

    def write_count(self, seconds: float) -> None:
        """The last line."""
        counted = ", ".join(f"{self.marks[mark]} {word}" for mark, word in WORDS.items() if self.marks[mark])
        print(f"{counted} ({seconds:.1f} s)", file=self._stream, flush=True)

    def _wrapped(self, text: str, first: str, margin: str = "") -> Iterable[str]:
        margin = margin or first
        for line in text.split("\n"):
            if line.startswith("    "):  # a command, to be copied
                yield margin + line
            else:
                yield from textwrap.wrap(
                    line,
                    self._width,
                    initial_indent=first,
                    subsequent_indent=margin,
                    break_long_words=False,
                    break_on_hyphens=False,
                ) or [margin]
            first = margin

    def _coloured(self, mark: str) -> str:
        if self._terminal and not os.environ.get("NO_COLOR"):
            return f"\033[{COLOURS[mark]}m{mark}\033[0m"
        return mark
