"""A flat index file of FAISS, read and written without FAISS: a header, then the vectors, one after the other.

    bytes    0 … 3     "IxFI" inner product, "IxF2" Euclidean distance
    bytes    4 … 36    int32 D, int64 N, two unused int64, bool trained, int32 metric
    bytes   37 … 44    int64 N * D
    bytes   45 …       N rows of D float32

So a builder can append vectors to the file without a second copy on disk, and exact search can memory-map them.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.downloaded import index_file
from local_dense_retriever.errors import InputError

HEADER = struct.Struct("<4siqqq?iq")
INNER_PRODUCT = b"IxFI"
_UNUSED = 1 << 20  # the value that FAISS writes


class FlatFile(NamedTuple):
    path: Path
    rows: int
    dim: int

    def vectors(self) -> NDArray[np.float32]:
        """(N, D) float32, memory-mapped: read from disk on access. They are not aligned; copy before computing."""
        return np.memmap(self.path, np.float32, "r", HEADER.size, (self.rows, self.dim))

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """(stop - start, D) float32, by an ordinary read, whose pages do not count as this process's memory."""
        count = (stop - start) * self.dim
        offset = HEADER.size + start * self.dim * 4
        return np.fromfile(self.path, np.float32, count, offset=offset).reshape(-1, self.dim)

    def blocks(self, start: int, stop: int, step: int) -> Iterator[NDArray[np.float32]]:
        """Reads the rows from start to stop, `step` at a time."""
        return (self.read(first, min(first + step, stop)) for first in range(start, stop, step))


def forget_pages(mapped: NDArray[np.float32]) -> None:
    """Drops the accessed pages of vectors() from this process's memory; they stay in the system's page cache."""
    assert isinstance(mapped.base, mmap.mmap)
    mapped.base.madvise(mmap.MADV_DONTNEED)


def read_flat_header(path: str | Path) -> FlatFile | None:
    """The shape of a flat inner-product index; None for another file. Raises InputError if header and size disagree."""
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    if not start.startswith(INNER_PRODUCT):
        return None
    size = path.stat().st_size
    if len(start) == HEADER.size:
        _, dim, rows, _, _, _, _, numbers = HEADER.unpack(start)
        expected = HEADER.size + rows * dim * 4
        if numbers == rows * dim and size == expected:
            return FlatFile(path, rows, dim)
        found = f"its header means {rows} vectors of dimension {dim}, {expected} bytes, but it has {size}"
    else:
        found = f"it has {size} bytes"
    raise InputError(f"{path} is cut short or damaged ({found}): build it with build_index.py, or copy it again")


def require_flat(path: str | Path, flag: str, remedy: str = "give the one that was built first") -> FlatFile:
    """Like read_flat_header, but raises InputError, naming the flag, if the file is missing or not flat."""
    file = index_file(path)
    if not file.is_file():
        raise InputError(f"there is no index file {path}: check {flag}")
    flat = read_flat_header(file)
    if flat is None:
        raise InputError(f"{flag} {path} is not a flat inner-product index: {remedy}")
    return flat


def write_flat_header(file: BinaryIO, rows: int, dim: int) -> None:
    """The header of an inner-product index, for vectors that are appended later."""
    file.write(HEADER.pack(INNER_PRODUCT, dim, rows, _UNUSED, _UNUSED, True, 0, rows * dim))
