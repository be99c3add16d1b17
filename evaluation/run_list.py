"""Lists the runs below a folder: demo runs, evaluations, and slime's debug dumps.

A run is a folder with `trajectories.jsonl` or with dumps of --save-debug-rollout-data. Its name is its path relative to
the given folder. Requests use only these names; no path is ever built from a request.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evaluation.records import is_demo_run, tokenizer_of
from evaluation.sample_files import is_dump
from evaluation.viewer_data import Json

MAX_DEPTH = 4  # of folders below the given one
TRAJECTORIES = "trajectories.jsonl"


class Run(NamedTuple):
    """A run's folder and its metadata."""

    name: str
    folder: Path

    @property
    def kind(self) -> str:
        """What produced the run."""
        if not (self.folder / TRAJECTORIES).is_file():
            return "debug dumps"
        return "demo" if is_demo_run(self.folder) else "evaluation"

    def files(self) -> list[Path]:
        """The run's trajectory files; dumps are complete ones, in numeric order."""
        if (file := self.folder / TRAJECTORIES).is_file():
            return [file]
        return sorted(_dumps(self.folder), key=lambda path: [*map(int, re.findall(r"\d+", path.stem)), 0])

    def tokenizer(self) -> Path | None:
        """The folder of the run's tokenizer, if known."""
        return tokenizer_of(self.folder)

    def settings(self) -> Json:
        """The settings of the run's rollouts; empty if unknown."""
        try:
            if (file := self.folder / "settings.yaml").is_file():
                return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
            return dict(_json(self.folder / "settings.json")["config"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return {}

    def facts(self) -> Json:
        """The run's entry in the list of runs."""
        files = self.files()
        stats = [file.stat() for file in files]
        return {
            "name": self.name,
            "kind": self.kind,
            "model": self.model(),
            "state": self._state(),
            "figures": self._figures(),
            "bytes": sum(stat.st_size for stat in stats),
            "files": len(files),
            "updated": max((stat.st_mtime for stat in stats), default=0.0),  # Unix time
        }

    def model(self) -> str:
        """The name of the model that was rolled out; empty if unknown."""
        if self.kind == "demo":
            return str(_json(self.folder / "summary.json").get("model", ""))
        return Path(str(_json(self.folder / "settings.json").get("model", ""))).name

    def _state(self) -> str:
        match self.kind:
            case "demo":
                stopped = _json(self.folder / "summary.json").get("stopped")
                return "running" if stopped == "running" else "finished"
            case "evaluation":
                return "finished" if (self.folder / "results.json").is_file() else "unfinished"
        return ""

    def _figures(self) -> str:
        """Exact match: before → after GRPO for a demo run, over all questions for an evaluation."""
        try:
            if self.kind == "demo":
                summary = _json(self.folder / "summary.json")
                found = [summary[phase]["exact_match"] for phase in ("before", "after") if summary.get(phase)]
            else:
                results = _json(self.folder / "results.json").get("results", {})
                found = [list(results.values())[-1]["em"]["mean"]] if results else []
            return " → ".join(f"{value:.3f}" for value in found)
        except (KeyError, TypeError, ValueError, IndexError):
            return ""


def find_runs(root: Path) -> dict[str, Run]:
    """The runs below `root`, or `root` itself, by name."""
    runs = (Run(_name(root, folder), folder) for folder in _folders(root) if _is_run(folder))
    return {run.name: run for run in runs}


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(root):
        path = Path(folder)
        is_deep = len(path.relative_to(root).parts) >= MAX_DEPTH
        below[:] = [] if is_deep else sorted(name for name in below if not name.startswith("."))
        yield path


def _is_run(folder: Path) -> bool:
    return (folder / TRAJECTORIES).is_file() or any(True for _ in _dumps(folder))


def _name(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else root.resolve().name


def _dumps(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*.pt"):
        stat = path.stat()
        if _is_dump(path, stat.st_mtime_ns, stat.st_size):
            yield path


@functools.lru_cache(maxsize=10_000)
def _is_dump(path: Path, changed_ns: int, size: int) -> bool:
    """True if the file is a dump; the cached result is valid until the file changes."""
    return is_dump(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
