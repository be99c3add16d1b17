"""Settings of the memory allocator for training on a CPU."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next tensor, and the kernel use huge pages. Call it before importing torch.

    Otherwise each large tensor gets new memory, which the kernel fills with zeros page by page: in a training step that
    takes about as long as the arithmetic. Does nothing where the C library has no mallopt.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's switch for huge pages
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
