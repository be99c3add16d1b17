"""Reads a model folder: config.json, the headers of weight files, the iteration of a Megatron checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

from preflight.findings import Mistake


class BadFile(Mistake):
    """A file is missing or damaged; the message names it."""


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadFile."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadFile(f"there is no {path}") from error
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise BadFile(f"{path} does not hold a JSON object")
    return value


def text_config(folder: Path) -> dict[str, Any]:
    """config.json, or its text part for multimodal models. Raises BadFile."""
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def weight_files(folder: Path) -> list[Path]:
    """The weight files, including those that an index names but are missing. Raises BadFile if there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map", {})
            if not isinstance(shards, dict) or not shards:
                raise BadFile(f"{index} names no files")
            return [folder / shard for shard in sorted(set(map(str, shards.values())))]
        if (folder / name).is_file():
            return [folder / name]
    raise BadFile(f"{folder} has neither model.safetensors nor an index of its parts")


def count_parameters(files: list[Path]) -> int:
    """The parameters in all files, from their headers. Raises BadFile if a file is missing or incomplete."""
    if missing := [path.name for path in files if not path.is_file()]:
        raise BadFile(f"{len(missing)} of {len(files)} weight files are missing: {', '.join(missing[:3])}")
    return sum(map(_count, files))


def _count(path: Path) -> int:
    size = path.stat().st_size
    if size < 1024:
        with path.open("rb") as file:
            if file.read(8) in (b"version ", b""):
                raise BadFile(f"{path} has {size} bytes: it is a Git LFS pointer, or empty")
    if path.suffix != ".safetensors":
        return size // 2  # most have two bytes per parameter
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    except SafetensorError as error:
        raise BadFile(f"{path} is damaged: {error}") from error


def is_megatron(folder: Path) -> bool:
    """True if it looks like the output of Megatron's --save or slime's converter."""
    return (folder / "latest_checkpointed_iteration.txt").is_file() or (folder / "common.pt").is_file()


def megatron_iteration(folder: Path) -> str:
    """The iteration that a Megatron checkpoint resumes from, or "release". Raises BadFile."""
    latest = folder / "latest_checkpointed_iteration.txt"
    try:
        name = latest.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadFile(f"{folder} has no latest_checkpointed_iteration.txt") from error
    inside = folder / (f"iter_{int(name):07d}" if name.isdecimal() else name)
    if not inside.is_dir() or not any(inside.iterdir()):
        raise BadFile(f"{latest} names {name!r}, but {inside.name}/ is missing or empty: an incomplete checkpoint")
    return name
