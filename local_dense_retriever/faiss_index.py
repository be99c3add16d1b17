"""Any FAISS index file: vectors in, the rows of the nearest passages out."""

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.downloaded import index_file
from local_dense_retriever.errors import InputError
from local_dense_retriever.flat_file import read_flat_header
from local_dense_retriever.memory import require_memory
from local_dense_retriever.searcher import About, Found

REMEDY = "build it with build_index.py, or copy it again"


class FaissIndex:
    """A FAISS index file, memory-mapped by default. Its row i is row i of the corpus."""

    def __init__(
        self,
        path: str | Path,
        *,
        use_gpu: bool = False,
        in_memory: bool = False,
        nprobe: int | None = None,
        ef_search: int | None = None,
    ) -> None:
        """`use_gpu` splits the index over all visible GPUs, in fp16.

        Raises InputError if the file is missing, truncated or not a FAISS index, if a setting does not apply to it, or
        if there is no GPU or too little memory.
        """
        self.path = index_file(path)
        if use_gpu:
            _require_gpu()
        index = read_index(self.path, in_memory=in_memory or use_gpu)
        _set(index, "nprobe", nprobe, self.path)
        _set(index, "efSearch", ef_search, self.path)
        self._index = _to_all_gpus(index) if use_gpu else index
        self._index_type = type(index).__name__
        self.dim: int = index.d

    def __len__(self) -> int:
        return self._index.ntotal

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        """(B, D) float32 queries -> the (B, k) nearest rows. An index of fewer than k vectors fills up with row -1."""
        scores, rows = self._index.search(vectors, k)
        return Found(rows, scores)

    def describe(self) -> About:
        size = self.path.stat().st_size
        return {"backend": f"faiss {self._index_type}", "rows": len(self), "dimension": self.dim, "bytes": size}


def read_index(path: Path, in_memory: bool) -> faiss.Index:
    """Reads the file. Raises InputError like FaissIndex."""
    if not path.is_file():
        raise InputError(f"there is no index file {path}: {REMEDY}")
    read_flat_header(path)  # FAISS silently maps a truncated flat file
    if in_memory:
        require_memory(path.stat().st_size, f"the index {path}", "leave out --in_memory, which maps it from disk")
    try:
        index = faiss.read_index(str(path), 0 if in_memory else faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).rpartition("Error: ")[2]  # FAISS puts its C++ file and function before it
        raise InputError(f"{path} is cut short or is not a FAISS index ({reason}): {REMEDY}") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"the index {path} ranks by distance, not by inner product: {REMEDY}")
    return index


def _set(index: faiss.Index, name: str, value: int | None, path: Path) -> None:
    """Sets nprobe or efSearch, also inside a wrapped index."""
    if value is None:
        return
    flag = {"nprobe": "--nprobe", "efSearch": "--ef_search"}[name]
    if value < 1:
        raise InputError(f"{flag} is {value}; it must be at least 1")
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    except RuntimeError as error:
        kind = {"nprobe": "IVF", "efSearch": "HNSW"}[name]
        raise InputError(f"{flag} is for {kind} indexes, and {path} is another kind: leave it out") from error


def _require_gpu() -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "--faiss_gpu needs a FAISS with GPU support, and this one has none: install faiss-gpu-cu12 instead of "
            "faiss-cpu, or leave the flag out (torch searches a flat index on a GPU)"
        )
    if faiss.get_num_gpus() == 0:
        raise InputError("--faiss_gpu finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or leave the flag out")


def _to_all_gpus(index: faiss.Index) -> faiss.Index:
    """Splits the vectors over all visible GPUs, in fp16: wiki-18's 65 GB of fp32 become 32 GB in all."""
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
