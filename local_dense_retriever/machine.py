"""What this machine has: GPUs, fast instructions, free memory. torch is imported late: a CPU server needs none."""

import importlib.util
import re
from pathlib import Path

from local_dense_retriever.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM
RESERVE_BYTES = 256 << 20  # for queries and results


def gpus() -> list[str]:
    """torch's names of the visible GPUs; none without torch."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def visible_devices() -> list[str]:
    """torch's names of all GPUs, or of the CPU."""
    return gpus() or ["cpu"]


def fast_in_half_precision() -> bool:
    """True if torch is installed and there is a GPU or a CPU with bfloat16 instructions."""
    words = set(_text(CPU_INFO).split())
    return importlib.util.find_spec("torch") is not None and bool(gpus() or BFLOAT16_FLAGS & words)


def available_bytes() -> int | None:
    """The bytes that this process may still allocate in its machine and container; None if Linux does not say."""
    available = _number(Path("/proc/meminfo"), "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    bounds = [] if available is None else [available * 1024]
    if limit is not None and used is not None:
        bounds.append(limit - used + (_number(group / "memory.stat", "file ") or 0))  # cached files can be dropped
    return min(bounds, default=None)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raises InputError if fewer bytes than `needed` are free."""
    available = available_bytes()
    if available is not None and needed + RESERVE_BYTES > available:
        raise InputError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB are free: {remedy}"
        )


def _number(path: Path, name: str = "") -> int | None:
    """The number after this name at the beginning of a line; None if there is none."""
    found = re.search(rf"^{name}\s*(\d+)\b", _text(path), re.MULTILINE)
    return int(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
