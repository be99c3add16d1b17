"""Prompt data as slime reads it: a parquet or JSON-lines file, of which `@[from:to]` takes some rows."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from preflight.findings import Mistake, one_line
from preflight.setup import ROOT, Setup

ROWS_READ = 100  # of those that are used, the first
SLICE = re.compile(r"^(?P<path>.*)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]$")


class Data(NamedTuple):
    """The rows that slime is told to use."""

    name: str  # of the setting
    path: Path
    total: int
    first: list[Any]


def read_data(setup: Setup, name: str) -> Data:
    """The rows of the file that a setting names. Raises Mistake."""
    path, bounds = _parts(setup[name])
    if path.suffix not in (".parquet", ".jsonl"):
        raise Mistake(f"{path} is neither .parquet nor .jsonl", f"set {name} to such a file")
    if not path.is_file():
        raise Mistake(f"there is no file {path}", f"correct {name}, or make the data:\n{preparation(setup, name)}")
    try:
        total, rows = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
        start, stop, _ = bounds.indices(total)
        first = list(itertools.islice(rows, start, min(stop, start + ROWS_READ)))
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        found = f"{path} cannot be read: {one_line(error)}"
        raise Mistake(found, f"make the data anew:\n{preparation(setup, name)}") from error
    if not first:
        raise Mistake(f"{setup[name]} takes none of the {total} rows of the file", f"correct {name}")
    return Data(name, path, stop - start, first)


def preparation(setup: Setup, name: str) -> str:
    """The command that makes data for this mode, as a line of a remedy."""
    form = "chat" if setup.environment.get("LLM_API_MODE") == "chat" else "xml"
    if form == "xml" and not setup.is_on("APPLY_CHAT_TEMPLATE"):
        form = "text"
    folder = shlex.quote(str(_parts(setup[name])[0].parent))
    program = shlex.quote(str(ROOT / "oai_format_data_preprocess.py"))
    return f"    {setup['PYTHON']} {program} --format {form} --local_dir {folder}"


def _parts(given: str) -> tuple[Path, slice]:
    match = SLICE.match(given)
    if not match:
        return Path(given), slice(None)
    start, stop = (int(match[end]) if match[end] else None for end in ("start", "stop"))
    return Path(match["path"]), slice(start, stop)


def _parquet(path: Path) -> tuple[int, Iterator[Any]]:
    from pyarrow.parquet import ParquetFile

    def rows() -> Iterator[Any]:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()

    with ParquetFile(path) as file:
        return file.metadata.num_rows, rows()


def _jsonl(path: Path) -> tuple[int, Iterator[Any]]:
    def rows() -> Iterator[Any]:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())

    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip()), rows()
