"""Lists the runs below a folder: demo runs, evaluations, and slime's debug dumps.

A run is a folder with `trajectories.jsonl` or with dumps of --save-debug-rollout-data. Its name is its path relative to
the given folder. Requests use only these names; no path is ever built from a request.
"""

import functools
import operator
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.plugin import read_settings
from evaluation.records import TRAJECTORIES, is_demo_run, read_json
from evaluation.viewer_data import Json

MAX_DEPTH = 4  # of folders below the given one


class Run(NamedTuple):
    """A run's folder and its metadata."""

    name: str
    folder: Path

    def files(self) -> list[Path]:
        """The run's trajectory files; dumps are complete ones, in numeric order."""
        if (file := self.folder / TRAJECTORIES).is_file():
            return [file]
        return sorted(_dumps(self.folder), key=lambda path: [*map(int, re.findall(r"\d+", path.stem)), 0])

    def settings(self) -> Json:
        """The settings of the run's rollouts; empty if unknown."""
        try:
            if (file := self.folder / "settings.yaml").is_file():
                return read_settings(file)
            return dict(read_json(self.folder / "settings.json")["config"])
        except (ValueError, TypeError, KeyError):
            return {}

    def model(self) -> str:
        """The name of the model that was rolled out; empty if unknown."""
        facts = read_json(self.folder / ("summary.json" if is_demo_run(self.folder) else "settings.json"))
        return Path(str(facts.get("model", ""))).name

    def facts(self) -> Json:
        """The run's entry in the list of runs."""
        kind, state, figures = self._outcome()
        stats = [file.stat() for file in self.files()]
        return {
            "name": self.name,
            "kind": kind,
            "model": self.model(),
            "state": state,
            "figures": figures,
            "bytes": sum(stat.st_size for stat in stats),
            "updated": max((stat.st_mtime for stat in stats), default=0.0),  # Unix time
        }

    def _outcome(self) -> tuple[str, str, str]:
        """What produced the run, its state, and its exact match; of a demo run before and after GRPO."""
        if not (self.folder / TRAJECTORIES).is_file():
            return "debug dumps", "", ""
        if is_demo_run(self.folder):
            summary = read_json(self.folder / "summary.json")
            figures = [_figure(summary, phase, "exact_match") for phase in ("before", "after")]
            state = "running" if summary.get("stopped") == "running" else "finished"
            return "demo", state, " → ".join(filter(None, figures))
        file = self.folder / "results.json"
        results = read_json(file).get("results")
        overall = list(results)[-1] if results else None
        return "evaluation", "finished" if file.is_file() else "unfinished", _figure(results, overall, "em", "mean")


def _figure(found: Any, *keys: Any) -> str:
    """The figure below these keys, if there is one."""
    try:
        return f"{functools.reduce(operator.getitem, keys, found):.3f}"
    except (KeyError, TypeError, ValueError):
        return ""


def find_runs(root: Path) -> dict[str, Run]:
    """The runs below `root`, or `root` itself, by name."""
    found = {}
    for folder in _folders(root):
        if (folder / TRAJECTORIES).is_file() or any(True for _ in _dumps(folder)):
            name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
            found[name] = Run(name, folder)
    return found


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(root):
        path = Path(folder)
        is_deep = len(path.relative_to(root).parts) >= MAX_DEPTH
        below[:] = [] if is_deep else sorted(name for name in below if not name.startswith("."))
        yield path


def _dumps(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*.pt"):
        stat = path.stat()
        if _is_dump(path, stat.st_mtime_ns, stat.st_size):
            yield path


@functools.lru_cache(maxsize=10_000)
def _is_dump(path: Path, changed_ns: int, size: int) -> bool:
    """True if it looks like a whole dump, by its first bytes; the cached result is valid until the file changes."""
    try:
        with zipfile.ZipFile(path) as parts:
            name = next((name for name in parts.namelist() if name.endswith("/data.pkl")), None)
            return name is not None and b"samples" in parts.open(name).read(200)
    except (OSError, zipfile.BadZipFile):
        return False
