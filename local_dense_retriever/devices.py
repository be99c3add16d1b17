"""Finds the devices that compute vectors. torch is imported inside the functions: a CPU server works without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM


def gpus() -> list[str]:
    """torch's names of the visible GPUs; none without torch."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def visible_devices() -> list[torch.device]:
    """All GPUs, or the CPU."""
    import torch

    return [torch.device(name) for name in gpus() or ["cpu"]]


def fast_in_half_precision() -> bool:
    """True if torch is installed and there is a GPU or a CPU with bfloat16 instructions."""
    if importlib.util.find_spec("torch") is None:
        return False
    if gpus():
        return True
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BFLOAT16_FLAGS & set(flags.split()))
