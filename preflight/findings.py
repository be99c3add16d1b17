"""The results of checks. A group of checks is a module of this package with a tuple CHECKS.

A check is a function from the `Setup` to one `Finding`; its name is the row's name. It may also raise `Mistake`, which
becomes a row with ✗, or `Blocked` if another row already reports why it cannot run. Any other exception becomes a row
with ✗ that names it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from evaluation.verdict_table import Finding as Finding  # the groups import it from here


class Mistake(Exception):
    """Something is wrong; the first check that notices it reports it."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(found)
        self.remedy = remedy


class Blocked(Exception):
    """A check cannot run; the message says why. Another row reports the cause."""


@contextmanager
def mistake(remedy: str, *kinds: type[Exception], found: str = "") -> Iterator[None]:
    """Errors of these kinds become a Mistake with this remedy; its text begins with `found`."""
    try:
        yield
    except kinds as error:
        raise Mistake(f"{found}{one_line(error)}", remedy) from error


fine = partial(Finding, "✓")
wrong = partial(Finding, "✗")
doubtful = partial(Finding, "!")
skipped = partial(Finding, "–")


def pip_install(*packages: str, python: str = sys.executable) -> str:
    """A remedy with the command that installs the packages."""
    return f"install it:\n    {python} -m pip install {' '.join(packages)}"


def one_line(text: Any, limit: int = 300) -> str:
    """External text, joined to one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
