"""The folder of one evaluation: settings.json, results.json, and trajectories.jsonl, which grows line by line."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from search_rollout.samples.record import METADATA_KEY, RolloutRecord, read_record

TRAJECTORIES = "trajectories.jsonl"  # of an evaluation and of a demo run
SAMPLE_FIELDS = (  # of slime's Sample, as in its debug dumps; `status` is a string
    "index group_index prompt tokens response response_length label reward loss_mask rollout_log_probs "
    "weight_versions remove_sample metadata"
).split()


def record_of(sample: Any, /, **more: Any) -> dict[str, Any]:
    """A slime Sample as one JSON object; `more` adds further keys."""
    fields = {name: getattr(sample, name) for name in SAMPLE_FIELDS if hasattr(sample, name)}
    return {**more, **fields, "status": sample.status.value}


def rollout_of(fields: Mapping[str, Any]) -> RolloutRecord | None:
    """This plugin's record in a Sample's fields; None for samples of other plugins. Raises RecordError."""
    metadata = fields.get("metadata")
    found = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    return read_record(found) if isinstance(found, Mapping) else None


def key_of(record: Mapping[str, Any]) -> tuple[str, int]:
    """The question's id and the sample's number, which is 0 if each question is asked once."""
    return record["id"], record.get("sample", 0)


def read_records(folder: Path, phase: str = "") -> list[dict[str, Any]]:
    """The trajectories of a finished or interrupted evaluation, or of one phase of a demo run.

    Raises ValueError if `folder` is neither.
    """
    try:
        records = [json.loads(line) for line in _whole_lines(folder / TRAJECTORIES)]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is neither an evaluation nor a demo run: {error}.") from error
    if records and "scores" not in records[0]:
        raise ValueError(f"{folder} is a demo run of an older version; evaluate its models to compare them.")
    return [record for record in records if record.get("phase", phase) == phase]


def is_demo_run(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def tokenizer_of(folder: Path) -> Path | None:
    """The tokenizer of a demo run, or of the model that an evaluation asked; None if the folder names none."""
    if is_demo_run(folder):
        return next((found for name in ("tokenizer", "after", "before") if (found := folder / name).is_dir()), None)
    model = read_json(folder / "settings.json").get("model")
    return Path(model) if isinstance(model, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """The file's JSON object; empty if it has none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Records:
    """The trajectories of one run, appended as they finish.

    A run with the same settings is continued: `scores` has its finished samples. Discarded samples are dropped, so
    that they are asked again.
    """

    def __init__(self, file: TextIO, path: Path) -> None:
        self.scores: dict[tuple[str, int], dict[str, Any]] = {}  # question id, sample → scores
        self._file = file
        self._keep_finished(path)

    @classmethod
    @contextmanager
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Iterator["Records"]:
        """Raises ValueError if the folder has a run with other settings, or if another process is writing to it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / TRAJECTORIES
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"Another evaluation is writing to {folder}; give another --output.") from error
            _check_settings(folder, settings)
            yield cls(file, path)

    def add(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self.scores[key_of(record)] = record["scores"]

    def _keep_finished(self, path: Path) -> None:
        """Rewrites the file in place, keeping its lock, if it has a truncated line or a discarded sample."""
        kept = []
        for line in _whole_lines(path):
            record = json.loads(line)
            if not record["scores"]["gave_up"]:
                kept.append(line + "\n")
                self.scores[key_of(record)] = record["scores"]
        if sum(len(line.encode()) for line in kept) != path.stat().st_size:
            self._file.truncate(0)
            self._file.writelines(kept)
            self._file.flush()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Compares the settings with those that the folder's run started with, or writes them for a new run."""
    path = folder / "settings.json"
    now = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, now)
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; give another --output.") from error
    pairs = {key: (then.get(key), now.get(key)) for key in sorted({*then, *now})}
    if changed := [f"{key} was {old!r} and is now {new!r}" for key, (old, new) in pairs.items() if old != new]:
        raise ValueError(f"{folder} has a run with other settings; give another --output: {'; '.join(changed)}.")


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a truncated last line."""
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def write_json(path: Path, value: Any) -> None:
    """Writes the file atomically."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` at the end; an interruption leaves the old file, and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
