"""Any FAISS index file: vectors in, the rows of the nearest passages out; and a flat file converted to another type."""

import re
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from local_dense_retriever.downloaded import index_file
from local_dense_retriever.errors import InputError
from local_dense_retriever.flat_file import FlatFile, read_flat_header
from local_dense_retriever.machine import require_memory
from local_dense_retriever.searcher import About, Found, VectorIndex, best, exact_scores

ADD_ROWS = 65_536  # read and added at a time
TRAIN_ROWS = 262_144  # maximum; FAISS uses 256 of them per centroid
FEWEST_CANDIDATES = 100  # of a rescored search
CANDIDATES_PER_RESULT = 10
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
        path = index_file(path)
        if use_gpu:
            _require_gpu()
        index = read_index(path, in_memory=in_memory or use_gpu)
        _set(index, path, "--nprobe", "nprobe", nprobe, "IVF")
        _set(index, path, "--ef_search", "efSearch", ef_search, "HNSW")
        self.about = About(path, f"faiss {type(index).__name__}", index.ntotal, index.d, path.stat().st_size)
        self._index = index
        if use_gpu:  # split over all GPUs in fp16, wiki-18's 65 GB of fp32 are 32 GB
            options = faiss.GpuMultipleClonerOptions()
            options.useFloat16 = options.shard = True
            self._index = faiss.index_cpu_to_all_gpus(index, co=options)

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        """(B, D) float32 queries -> the (B, k) nearest rows. An index of fewer than k vectors fills up with row -1."""
        scores, rows = self._index.search(vectors, k)
        return Found(rows, scores)


class RescoredIndex:
    """A compressed index whose candidates are scored again with the full vectors of a flat file on disk.

    With a few bytes per vector in memory its results are close to exact search; only candidates are read from disk.
    """

    def __init__(self, index: VectorIndex, flat: FlatFile) -> None:
        """Raises InputError if the two have different shapes."""
        about = index.about
        if (about.rows, about.dimension) != (flat.rows, flat.dim):
            raise InputError(
                f"{about.path} has {about.rows} rows of {about.dimension} numbers and {flat.path} {flat.rows} of "
                f"{flat.dim}: give the flat index that it was made from as --rescore_path"
            )
        self.about = about._replace(backend=f"{about.backend}, rescored")
        self._index = index
        self._vectors = flat.vectors()

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        """(B, D) float32 queries -> the (B, k) best of the index's candidates; -1 fills missing ones."""
        proposed = self._index.search(vectors, max(FEWEST_CANDIDATES, CANDIDATES_PER_RESULT * k)).rows
        scores = exact_scores(self._vectors, vectors, proposed)
        scores[proposed < 0] = -np.inf
        return best(proposed, scores, k)


def read_index(path: Path, in_memory: bool) -> faiss.Index:
    """Reads the file. Raises InputError like FaissIndex."""
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


def _set(index: faiss.Index, path: Path, flag: str, name: str, value: int | None, kind: str) -> None:
    """Sets FAISS's parameter `name`, which indexes of this kind have, also inside a wrapped index."""
    if value is None:
        return
    if value < 1:
        raise InputError(f"{flag} is {value}; it must be at least 1")
    try:
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    except RuntimeError as error:
        raise InputError(f"{flag} is for {kind} indexes, and {path} is another kind: leave it out") from error


def _require_gpu() -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        raise InputError(
            "--faiss_gpu needs a FAISS with GPU support, and this one has none: install faiss-gpu-cu12 instead of "
            "faiss-cpu, or leave the flag out (torch searches a flat index on a GPU)"
        )
    if faiss.get_num_gpus() == 0:
        raise InputError("--faiss_gpu finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or leave the flag out")


def empty_index(index_type: str, dim: int) -> faiss.Index:
    """Raises InputError if FAISS does not know the type, or if it does not suit the dimension."""
    try:
        return faiss.index_factory(dim, index_type, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refusal(index_type, error) from error


def write_converted(flat: FlatFile, path: Path, index_type: str) -> None:
    """Writes an index of this type with all vectors. Raises InputError if it does not suit them or the disk is full."""
    index = empty_index(index_type, flat.dim)
    if not index.is_trained:
        chosen = np.random.default_rng(0).choice(flat.rows, min(flat.rows, TRAIN_ROWS), replace=False)
        sample = np.array(flat.vectors()[np.sort(chosen)])  # (T, D) float32, always the same
        print(f"training {index_type} on {len(sample)} of {flat.rows} vectors", flush=True)
        try:
            index.train(sample)
        except RuntimeError as error:
            raise _refusal(index_type, error) from error
    with tqdm(total=flat.rows, unit=" vectors", desc=index_type) as progress:
        for block in flat.blocks(0, flat.rows, ADD_ROWS):
            index.add(block)
            progress.update(len(block))
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: is the disk full? Run the same command again to continue") from error


def _refusal(index_type: str, error: RuntimeError) -> InputError:
    reason = re.sub(r"^.*\.(?:cpp|h):\d+: ", "", str(error).strip().partition("\n")[0])  # C++ function, file, line
    return InputError(
        f"FAISS cannot make --index_type {index_type} ({reason}): give one such as Flat, SQ8, IVF4096,SQ8 or HNSW32"
    )
