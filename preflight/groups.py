"""Runs the checks of all groups concurrently; a check that fails or hangs does not affect other groups."""

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from evaluation.verdict_table import Row as Row
from preflight.findings import Blocked, Finding, Mistake, one_line, pip_install, skipped, wrong
from preflight.setup import Setup

Check: TypeAlias = Callable[[Setup], Finding]

LIMIT_S = 50.0  # per group, counted from the start
ENGINE_LIMIT_S = 240.0  # a real rollout takes as long as the engine does
NO_PACKAGE = "Python has no package "


def run_groups(setup: Setup, names: Sequence[str]) -> Iterator[Row]:
    """The rows of these groups in order; each group's rows arrive together once the group is finished."""
    began = time.monotonic()
    # Imported here, one by one: concurrent imports in threads may see a half-initialised module if one of them fails.
    groups = [_Group(name, setup) for name in names]
    missing: set[str] = set()
    for group in groups:
        group.start()
    for group in groups:
        limit_s = ENGINE_LIMIT_S if group.name == "engine" else LIMIT_S
        group.join(max(began + limit_s - time.monotonic(), 0.0))
        for row in list(group.rows):
            yield row if row.finding.found not in missing else row._replace(finding=skipped(row.finding.found))
            if row.finding.found.startswith(NO_PACKAGE):
                missing.add(row.finding.found)
        if group.is_alive():
            hangs = wrong(f"no result after {limit_s:.0f} s", "find out what it waits for")
            yield Row(group.name, group.looking, hangs)


class _Group(threading.Thread):
    """Runs the checks of one group in order. A daemon, so a check that hangs does not keep the program alive."""

    def __init__(self, name: str, setup: Setup) -> None:
        super().__init__(name=name, daemon=True)
        self.rows: list[Row] = []
        self.looking = ""
        self._setup = setup
        self._checks: Sequence[Check] = ()
        try:
            self._checks = importlib.import_module(f"preflight.{name}").CHECKS
        except Exception as error:
            self.rows.append(Row(name, "start", _unexpected(error)))

    def run(self) -> None:
        for check in self._checks:
            self.looking = check.__name__.replace("_", " ")
            self.rows.append(Row(self.name, self.looking, _look(check, self._setup)))


def _look(check: Check, setup: Setup) -> Finding:
    try:
        return check(setup)
    except Blocked as why:
        return skipped(str(why))
    except Mistake as mistake:
        return wrong(str(mistake), mistake.remedy)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> Finding:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return wrong(f"{NO_PACKAGE}{package}", pip_install(package))
    return wrong(f"the check itself failed: {one_line(repr(error))}", "this is a bug in preflight: please report it")
