"""What a check finds, and how the checks of all groups are run: side by side, none able to spoil another.

A group is a module of this package with a tuple CHECKS. A check is a function from the `Setup` to one `Finding`; it
may also raise `Mistake`, which is a row with ✗, or `Blocked` where it cannot look because of what another row says.
Any other exception is a row with ✗ that names it.
"""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from preflight.setup import Setup

Mark: TypeAlias = Literal["✓", "✗", "!", "–"]

LIMIT_S = 50.0  # of a group, from the start; what has not answered by then is a row with ✗
ENGINE_LIMIT_S = 240.0  # a real rollout takes as long as the engine does


class Finding(NamedTuple):
    """What one check says; `remedy` stands with ✗ and ! only. Its lines that begin with blanks are commands."""

    mark: Mark
    found: str
    remedy: str = ""


class Check(NamedTuple):
    """One row of the table, to be."""

    name: str
    look: "Callable[[Setup], Finding]"


class Row(NamedTuple):
    """One row of the table."""

    group: str
    name: str
    finding: Finding


class Mistake(Exception):
    """What a check finds wrong, said from further down: as `wrong`."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


class Blocked(Exception):
    """A check cannot look; the message says why. The reason has a row of its own."""


def fine(found: str) -> Finding:
    return Finding("✓", found)


def wrong(found: str, remedy: str) -> Finding:
    return Finding("✗", found, remedy)


def doubtful(found: str, remedy: str) -> Finding:
    return Finding("!", found, remedy)


def skipped(why: str) -> Finding:
    return Finding("–", why)


def run_groups(setup: "Setup", groups: Sequence[str]) -> Iterator[Row]:
    """The rows of these groups in their order, each group's as soon as they are all there."""
    began = time.monotonic()
    running = [_Group(name, setup) for name in groups]
    for group in running:
        group.start()
    for group in running:
        limit_s = ENGINE_LIMIT_S if group.name == "engine" else LIMIT_S
        group.join(max(began + limit_s - time.monotonic(), 0.0))
        yield from list(group.rows)
        if group.is_alive():
            yield Row(group.name, group.looking, wrong(f"no result after {limit_s:.0f} s", "find out what hangs there"))


class _Group(threading.Thread):
    """The checks of one group, one after the other. A daemon: one that hangs does not keep the program."""

    def __init__(self, name: str, setup: "Setup") -> None:
        super().__init__(name=name, daemon=True)
        self.rows: list[Row] = []
        self.looking = "start"
        self._setup = setup

    def run(self) -> None:
        try:
            checks: Sequence[Check] = importlib.import_module(f"preflight.{self.name}").CHECKS
        except Exception as error:
            self.rows.append(Row(self.name, "start", _unexpected(error)))
            return
        for check in checks:
            self.looking = check.name
            self.rows.append(Row(self.name, check.name, _look(check, self._setup)))


def _look(check: Check, setup: "Setup") -> Finding:
    try:
        return check.look(setup)
    except Blocked as why:
        return skipped(str(why))
    except Mistake as mistake:
        return wrong(str(mistake), mistake.remedy)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> Finding:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return wrong(f"Python has no package {package}", f"install it:\n{pip_install(package)}")
    return wrong(f"the check itself failed: {one_line(repr(error))}", "this is not expected: please report it")


def pip_install(*packages: str) -> str:
    """The command, as a line of a remedy."""
    return f"    {sys.executable} -m pip install {' '.join(packages)}"


def one_line(text: Any, limit: int = 300) -> str:
    """Somebody else's words, on one line and not too many."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
