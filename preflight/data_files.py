"""Prompt data as slime reads it: a parquet or JSON-lines file, optionally with `@[from:to]` for some of its rows."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.plugin import read_settings
from evaluation.questions import read_rows
from preflight.findings import Mistake, mistake
from preflight.setup import ROOT, Setup

ROWS_READ = 100  # the first of the selected rows
SLICE = re.compile(r"^(?P<path>.*)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]$")


class Data(NamedTuple):
    """The rows that slime will use."""

    path: Path
    total: int
    first: list[Any]
    remedy: str  # with the command that prepares such data again


def read_evaluation(setup: Setup) -> list[Data]:
    """The rows of EVAL_DATA, else of each set of EVAL_CONFIG. Raises Mistake."""
    if setup["EVAL_DATA"]:
        return [read_data(setup, "EVAL_DATA")]
    path = Path(setup["EVAL_CONFIG"])
    remedy = f"correct EVAL_CONFIG, or prepare the data:\n{_preparation(setup, path)}"
    with mistake(remedy, ValueError):
        config = read_settings(path)
    try:
        named = [str(one["path"]) for one in config["eval"]["datasets"]]
    except (KeyError, TypeError) as error:
        raise Mistake(f"{path} has no eval.datasets with a name and a path each", remedy) from error
    return [read_data(setup, "EVAL_CONFIG", file) for file in named]


def read_data(setup: Setup, name: str, value: str | None = None) -> Data:
    """The rows of the file named by a setting, or by `value`, an entry in that setting's file. Raises Mistake."""
    given = setup[name] if value is None else value
    match = SLICE.match(given)
    path = Path(match["path"] if match else given)
    start, stop = (int(match[end]) if match and match[end] else None for end in ("start", "stop"))
    command = _preparation(setup, path)
    if path.suffix not in (".parquet", ".jsonl"):
        raise Mistake(f"{path} is neither .parquet nor .jsonl", f"set {name} to such a file")
    if not path.is_file():
        raise Mistake(f"there is no file {path}", f"correct {name}, or prepare the data:\n{command}")
    remedy = f"prepare the data again:\n{command}"
    with mistake(remedy, OSError, ValueError, found=f"{path} cannot be read: "):  # includes pyarrow's errors
        total = _count(path)
        begin, end, _ = slice(start, stop).indices(total)
        first = list(itertools.islice(read_rows(path), begin, min(end, begin + ROWS_READ)))
    if not first:
        raise Mistake(f"{given} selects none of the {total} rows of the file", f"correct {name}")
    return Data(path, end - begin, first, remedy)


def _preparation(setup: Setup, path: Path) -> str:
    """The command that makes data for this mode, as a line of a remedy."""
    form = "chat" if setup.environment.get("LLM_API_MODE") == "chat" else "xml"
    if form == "xml" and not setup.is_on("APPLY_CHAT_TEMPLATE"):
        form = "text"
    program, folder = (shlex.quote(str(name)) for name in (ROOT / "oai_format_data_preprocess.py", path.parent))
    return f"    {setup['PYTHON']} {program} --format {form} --local_dir {folder}"


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            return file.metadata.num_rows
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())
