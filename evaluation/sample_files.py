"""Reads samples from slime's debug dumps (`.pt`) and from JSONL with a Sample's fields, one dict per sample.

A dump must be read whole, because torch stores it that way; JSONL is read line by line.
"""

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.records import TRAJECTORIES
from evaluation.terminal import Progress


class FileSample(NamedTuple):
    fields: dict[str, Any]
    path: Path
    number: int  # the line in JSONL, from 1; the index in a dump, from 0
    bytes_read: int  # since the previous sample

    @property
    def place(self) -> str:
        """The sample's line or number in its file, as text."""
        return f"{'sample' if self.path.suffix == '.pt' else 'line'} {self.number}"

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.path}, {self.place}"


def sample_files_of(paths: Sequence[Path]) -> list[Path]:
    """The files of a command line, with evaluation and demo run folders replaced by their trajectories.

    Raises ValueError that names missing files.
    """
    files = [path / TRAJECTORIES if path.is_dir() else path for path in paths]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"There is no file {', '.join(missing)}.")
    return files


def read_all(files: Sequence[Path], title: str, *, trust_pickle: bool) -> Iterator[FileSample]:
    """Every sample of the files; shows progress under this title. Raises like `read_samples`."""
    read, total = 0, sum(file.stat().st_size for file in files)
    with Progress(title, total // 1000, "kB") as progress:
        for file in files:
            for sample in read_samples(file, trust_pickle=trust_pickle):
                read += sample.bytes_read
                progress.update(read // 1000 - progress.done)
                yield sample


def read_samples(
    path: Path, *, trust_pickle: bool = False, begin: int = 0, lines_before: int = 0
) -> Iterator[FileSample]:
    """The samples of one file in order; JSONL is read from byte `begin` on, after `lines_before` lines.

    Raises ValueError, in one sentence, if the file is neither a dump nor JSONL of samples, OSError if it is unreadable.
    """
    return _read_dump(path, trust_pickle) if path.suffix == ".pt" else _read_jsonl(path, begin, lines_before)


def _read_dump(path: Path, trust_pickle: bool) -> Iterator[FileSample]:
    dump = _load(path, trust_pickle)
    samples = dump.get("samples") if isinstance(dump, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise ValueError(f"{path} is not a dump of --save-debug-rollout-data: it has no list of `samples`.")
    size = path.stat().st_size
    for number, sample in enumerate(samples):
        share = size * (number + 1) // len(samples) - size * number // len(samples)
        yield FileSample(sample, path, number, share)


def _load(path: Path, trust_pickle: bool) -> Any:
    import torch  # slow to import, and JSONL does not need it

    if trust_pickle:
        return torch.load(path, map_location="cpu", weights_only=False)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        try:
            objects = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except (RuntimeError, ValueError, pickle.UnpicklingError):  # not a torch file
            raise ValueError(f"{path} is not a torch.save file.") from None
        raise ValueError(
            f"{path} holds Python objects ({objects}), which can run code when loaded: if you trust the file, add "
            "--trust-pickle."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a complete torch.save file: {error}") from None


def _numpy_globals() -> list[Any]:
    """The names in pickles of numpy arrays and scalars, which early slime has in labels, routing replay in samples."""
    import numpy as np

    core: Any = np._core if hasattr(np, "_core") else np.core  # numpy 2, numpy 1
    functions = [getattr(core.multiarray, name) for name in ("_reconstruct", "scalar")]
    names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    return [np.ndarray, np.dtype, *functions, *names, *{type(np.dtype(code)) for code in "?bhilqBHILQefdOSU"}]


def _read_jsonl(path: Path, begin: int, lines_before: int) -> Iterator[FileSample]:
    size = 0  # since the sample before
    with path.open("rb") as lines:
        lines.seek(begin)
        for number, line in enumerate(lines, start=lines_before + 1):
            size += len(line)
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                sample = json.loads(line)
            except ValueError:  # not JSON, or not UTF-8
                if not line.endswith(b"\n"):  # the file is still being written
                    return
                raise ValueError(f"{where} is not JSON.") from None
            if not isinstance(sample, dict):
                raise ValueError(f"{where} is not a JSON object.")
            yield FileSample(sample, path, number, size)
            size = 0
