"""Samples from files: slime's debug dumps (`.pt`) and JSONL with a Sample's fields, one dict a sample.

A dump is read whole, since that is how torch stores it; JSONL is read line by line.
"""

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class FileSample(NamedTuple):
    fields: dict[str, Any]
    bytes_read: int  # of the file, since the sample before
    where: str  # for messages: file, and line or sample


def sample_files_of(paths: Sequence[Path]) -> list[Path]:
    """The files of a command line: a folder of an evaluation or a demo run stands for its trajectories.

    Raises ValueError that names those that are missing.
    """
    files = [path / "trajectories.jsonl" if path.is_dir() else path for path in paths]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"There is no file {', '.join(missing)}.")
    return files


def read_samples(path: Path, *, trust_pickle: bool = False) -> Iterator[FileSample]:
    """The samples of one file, in its order.

    Raises ValueError with one sentence if the file is no dump and no JSONL of samples, OSError if it cannot be read.
    """
    return _read_dump(path, trust_pickle) if path.suffix == ".pt" else _read_jsonl(path)


def _read_dump(path: Path, trust_pickle: bool) -> Iterator[FileSample]:
    dump = _load(path, trust_pickle)
    samples = dump.get("samples") if isinstance(dump, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise ValueError(f"{path} is no dump of --save-debug-rollout-data: it has no list of `samples`.")
    size = path.stat().st_size
    for number, sample in enumerate(samples):
        share = size * (number + 1) // len(samples) - size * number // len(samples)
        yield FileSample(sample, share, f"{path}, sample {number}")


def _load(path: Path, trust_pickle: bool) -> Any:
    import torch  # seconds, and JSONL does not need it

    if trust_pickle:
        return torch.load(path, map_location="cpu", weights_only=False)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        try:
            objects = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except (RuntimeError, ValueError, pickle.UnpicklingError):  # not one of torch's files at all
            raise ValueError(f"{path} is not a file that torch.save wrote.") from None
        raise ValueError(
            f"{path} holds Python objects ({objects}); loading them can run code of the file's author: "
            "if you trust the file, add --trust-pickle."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole file of torch.save: {error}") from None


def _numpy_globals() -> list[Any]:
    """What numpy arrays and scalars are pickled as: early slime leaves them in labels, routing replay in samples."""
    import numpy as np

    core: Any = np._core if hasattr(np, "_core") else np.core  # numpy 2, numpy 1
    functions = [getattr(core.multiarray, name) for name in ("_reconstruct", "scalar")]
    names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in functions]
    return [np.ndarray, np.dtype, *functions, *names, *{type(np.dtype(code)) for code in "?bhilqBHILQefdOSU"}]


def _read_jsonl(path: Path) -> Iterator[FileSample]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                sample = json.loads(line)
            except ValueError:  # not JSON, or not UTF-8
                if not line.endswith(b"\n"):  # the end of a file that is being written
                    return
                raise ValueError(f"{where} is not JSON.") from None
            if not isinstance(sample, dict):
                raise ValueError(f"{where} is not a JSON object.")
            yield FileSample(sample, len(line), where)
