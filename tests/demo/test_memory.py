"""Freed memory stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from demo.memory import keep_freed_memory
if sys.argv[2] == "kept":
    keep_freed_memory()
import torch
def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(new_pages() for _ in range(5)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_large_tensor_takes_the_pages_of_the_one_before() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, str(ROOT), how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)

    assert 10 * faults("kept") < faults("returned")
