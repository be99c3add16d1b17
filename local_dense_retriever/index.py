"""A FAISS index: vectors in, the rows of the nearest passages out."""

import threading
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.errors import InputError

REMEDY = "build it with build_index.py, or copy it again"


class Neighbours(NamedTuple):
    """The k nearest passages of B queries, best first."""

    scores: NDArray[np.float32]  # (B, k) inner products; meaningless where the row is -1
    rows: NDArray[np.int64]  # (B, k) rows of the corpus, -1 = none


class PassageIndex:
    """A FAISS index read from a file. Its row i is the vector of row i of the corpus."""

    def __init__(self, path: str | Path, use_gpu: bool = False) -> None:
        """Reads the whole index into memory, or onto all visible GPUs.

        Raises InputError if the file is missing or is no FAISS index, or if there is no GPU to use.
        """
        self.path = Path(path)
        if use_gpu:
            _require_gpu()
        if not self.path.is_file():
            raise InputError(f"there is no index file {self.path}: {REMEDY}")
        try:
            index = faiss.read_index(str(self.path))
        except (RuntimeError, MemoryError) as error:
            reason = str(error).rpartition("Error: ")[2]  # FAISS puts its C++ file and function before it
            raise InputError(f"{self.path} is cut short or is not a FAISS index ({reason}): {REMEDY}") from error
        self._index = _to_all_gpus(index) if use_gpu else index
        self._lock = threading.Lock()  # GPU indexes are not safe to search from several threads

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def dim(self) -> int:
        return self._index.d

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbours:
        """(B, D) float32 queries -> the (B, k) nearest rows. An index of fewer than k vectors fills up with row -1."""
        with self._lock:
            scores, rows = self._index.search(vectors, k)
        return Neighbours(scores, rows)


def _require_gpu() -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "--faiss_gpu needs a FAISS with GPU support, and this one has none: "
            "install faiss-gpu-cu12 in place of faiss-cpu, or leave the flag out"
        )
    if faiss.get_num_gpus() == 0:
        raise InputError("--faiss_gpu finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or leave the flag out")


def _to_all_gpus(index: faiss.Index) -> faiss.Index:
    """Splits the vectors over all visible GPUs, in fp16: wiki-18's 65 GB of fp32 become 32 GB in all."""
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
