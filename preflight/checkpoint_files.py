"""What stands in a model's folder: config.json, headers of safetensors files, iterations of a Megatron checkpoint."""

import json
import math
import struct
from pathlib import Path
from typing import Any

MAX_HEADER = 100 * 2**20  # bytes, as safetensors itself limits it


class BadFile(ValueError):
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
    """config.json, or the part of it that is about text. Raises BadFile."""
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights; every one that an index names, there or not. Raises BadFile if there are none."""
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
    """The numbers in all files, read from their headers. Raises BadFile if one is missing or cut off."""
    if missing := [path.name for path in files if not path.is_file()]:
        raise BadFile(f"{len(missing)} of {len(files)} weight files are missing: {', '.join(missing[:3])}")
    return sum(_safetensors(path) if path.suffix == ".safetensors" else _pickle(path) for path in files)


def _safetensors(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"version "):
            raise BadFile(f"{path} is a Git LFS pointer and not the weights")
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        try:
            header = json.loads(file.read(length)) if 0 < length <= MAX_HEADER else {}
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            ends = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
            numbers = sum(math.prod(tensor["shape"]) for tensor in tensors)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadFile(f"{path} is damaged: its header cannot be read") from error
    if not tensors or ends != size:
        raise BadFile(f"{path} is damaged: it has {size:,} bytes, and its header says {ends:,}")
    return numbers


def _pickle(path: Path) -> int:
    if path.stat().st_size < 1024:
        raise BadFile(f"{path} has {path.stat().st_size} bytes: a Git LFS pointer, or nothing")
    return path.stat().st_size // 2  # two bytes a number, mostly


def is_megatron(folder: Path) -> bool:
    """Whether it looks like what Megatron's --save or slime's converter writes."""
    return (folder / "latest_checkpointed_iteration.txt").is_file() or (folder / "common.pt").is_file()


def megatron_iteration(folder: Path) -> str:
    """The iteration that a Megatron checkpoint goes on from, or "release". Raises BadFile."""
    latest = folder / "latest_checkpointed_iteration.txt"
    try:
        name = latest.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadFile(f"{folder} has no latest_checkpointed_iteration.txt") from error
    inside = folder / (f"iter_{int(name):07d}" if name.isdecimal() else name)
    if not inside.is_dir() or not any(inside.iterdir()):
        raise BadFile(f"{latest} names {name!r}, and {inside.name}/ is missing or empty: a checkpoint that was cut off")
    return name
