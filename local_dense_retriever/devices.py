"""Where torch computes."""

from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM


def visible_devices() -> list[torch.device]:
    """All GPUs, or the CPU."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]


def fast_in_half_precision() -> bool:
    """Whether there is a GPU, or a CPU with instructions for bfloat16."""
    if torch.cuda.is_available():
        return True
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BFLOAT16_FLAGS & set(flags.split()))
