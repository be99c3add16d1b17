"""Exact search with torch over a flat index file: first in half precision, then in float32.

All queries are multiplied at once with blocks of fp16 (GPU) or bf16 (CPU) vectors. The best candidates are rescored in
float32 from the file; a query whose candidates might miss a row gets more of them. Memory traffic bounds such a search,
and half precision halves it; on a CPU with bf16 instructions it is several times faster. The mean is subtracted from
all vectors first. That shifts all scores of a query equally, so no ranking changes, but it makes the scores small,
where half precision is finest.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from local_dense_retriever.errors import InputError
from local_dense_retriever.flat_file import FlatFile, forget_pages, require_flat
from local_dense_retriever.machine import require_memory, visible_devices
from local_dense_retriever.searcher import About, Found, best, exact_scores

BLOCK_BYTES = 256 << 20  # for the scores of one block, or for vectors being read
MAX_BLOCK_ROWS = 1 << 20
FEWEST_CANDIDATES = 64
REMEDY = "give --index_backend faiss, which maps the file from disk, or convert it with build_index.py --from_index"


class ExactIndex:
    """The vectors of a flat index file in half precision, in the memory of all visible GPUs or of the CPU."""

    def __init__(self, path: str | Path, devices: Sequence[str] = ()) -> None:
        """Raises InputError if the file is missing, truncated, not flat, or too large for memory."""
        flat = require_flat(path, "--index_path", "leave out --index_backend exact")
        devices = devices or visible_devices()
        kind = devices[0].partition(":")[0]
        dtype = half_dtype(kind)
        backend = f"exact {kind} {str(dtype).removeprefix('torch.')}"
        self.about = About(flat.path, backend, flat.rows, flat.dim, flat.rows * flat.dim * dtype.itemsize)
        if kind == "cpu":
            require_memory(self.about.bytes, f"exact search of {flat.path}", REMEDY)
        self._mean = _mean(flat)
        self._vectors = flat.vectors()
        self._broken = 0  # rows with NaN or an infinity
        bounds = [flat.rows * i // len(devices) for i in range(len(devices) + 1)]
        self._parts = [
            (start, self._load(flat, start, stop, device, dtype))
            for device, (start, stop) in zip(devices, itertools.pairwise(bounds), strict=True)
        ]
        if self._broken:
            print(
                f"warning: {self._broken} rows of {flat.path} hold NaN or infinity and are never found: build it again"
            )

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        """(B, D) float32 queries -> the (B, k) nearest rows; row -1 beyond the index's size."""
        result, top = Found.nothing(len(vectors), k), min(k, self.about.rows)
        pending = np.arange(len(vectors))
        count = max(FEWEST_CANDIDATES, 4 * top)
        while len(pending):
            count = min(count, self.about.rows)
            found, certain = self._search_once(vectors[pending], top, count)
            result.rows[pending, :top], result.scores[pending, :top] = found
            pending = pending[~certain]
            count *= 8
        forget_pages(self._vectors)
        return result

    def _search_once(self, vectors: NDArray[np.float32], top: int, count: int) -> tuple[Found, NDArray[np.bool_]]:
        """The best of `count` candidates, and (B,) whether no other row can be among them."""
        coarse, candidates = coarse_search(self._parts, torch.from_numpy(vectors), count)  # (B, count)
        exact = exact_scores(self._vectors, vectors, candidates)
        found = best(candidates, exact, top)
        shift = vectors @ self._mean  # missing from the coarse scores
        difference = np.abs(exact - shift[:, None] - coarse)
        error = np.where(np.isfinite(exact), difference, 0.0).max(axis=1)  # measured on the candidates
        # Any other row scores at most coarse[:, -1] plus its own error, estimated as twice the largest error measured.
        certain = found.scores[:, -1] - shift >= coarse[:, -1] + 2 * error
        hopeless = ~np.isfinite(vectors).all(axis=1)  # queries that the encoder turned into NaN
        return found, certain | hopeless | (count >= self.about.rows)

    def _load(self, flat: FlatFile, start: int, stop: int, device: str, dtype: torch.dtype) -> Tensor:
        """(stop - start, D) vectors less their mean."""
        try:
            part = torch.empty(stop - start, flat.dim, dtype=dtype, device=device)
        except (torch.OutOfMemoryError, RuntimeError) as error:  # RuntimeError: the CPU's allocator
            size = (stop - start) * flat.dim * dtype.itemsize / 1e9
            raise InputError(f"{device} has no {size:.1f} GB free for {flat.path}: {REMEDY}") from error
        filled = 0
        for block in flat.blocks(start, stop, max(1, BLOCK_BYTES // (flat.dim * 4))):
            part[filled : filled + len(block)] = self._centred(block)
            filled += len(block)
        return part

    def _centred(self, block: NDArray[np.float32]) -> Tensor:
        """(R, D) vectors less the mean, computed in place; broken vectors are counted and set to 0."""
        vectors = torch.from_numpy(block)
        vectors -= torch.from_numpy(self._mean)
        if not vectors.sum().isfinite():  # NaN and infinity survive a sum, and it reads the block once
            broken = ~vectors.isfinite().all(dim=1)
            self._broken += int(broken.sum())
            vectors[broken] = 0
        return vectors


@torch.inference_mode()
def coarse_search(
    parts: Sequence[tuple[int, Tensor]], queries: Tensor, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(B, D) -> scores (B, count) in the parts' precision and rows (B, count), best first.

    `parts`: the number of the first row and the (R, D) vectors, for each device.
    """
    pieces = []
    block_rows = min(MAX_BLOCK_ROWS, max(count, BLOCK_BYTES // (2 * len(queries))))
    for start, part in parts:
        near = queries.to(part.device, part.dtype)
        for offset in range(0, len(part), block_rows):
            block = near @ part[offset : offset + block_rows].T  # (B, R)
            scores, rows = block.topk(min(count, block.shape[1]))
            pieces.append((scores, rows + (start + offset)))
    # Copied only after all have been launched: a copy to the CPU waits for its GPU.
    scores = torch.cat([piece[0].cpu() for piece in pieces], dim=1).float()
    rows = torch.cat([piece[1].cpu() for piece in pieces], dim=1)
    highest, at = scores.topk(count)
    return highest.numpy(), rows.gather(1, at).numpy()


def half_dtype(kind: str) -> torch.dtype:
    """fp16 for "cuda", bf16 for "cpu": correct on all CPUs, and fast on those with bf16 instructions."""
    return torch.float16 if kind == "cuda" else torch.bfloat16


def _mean(file: FlatFile) -> NDArray[np.float32]:
    """(D,), the mean of some thousand rows spread over the file; a rough mean is enough."""
    sample = np.asarray(file.vectors()[:: max(1, file.rows // 4096)], dtype=np.float32)
    sample = sample[np.isfinite(sample).all(axis=1)]
    return sample.sum(axis=0, dtype=np.float64).astype(np.float32) / np.float32(max(1, len(sample)))
