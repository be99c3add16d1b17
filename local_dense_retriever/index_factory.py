"""Converts a flat index file to another type of FAISS index, block by block."""

import re
from pathlib import Path

import faiss
import numpy as np
from tqdm import tqdm

from local_dense_retriever.errors import InputError
from local_dense_retriever.flat_file import FlatFile

ADD_ROWS = 65_536  # read and added at a time
TRAIN_ROWS = 262_144  # maximum; FAISS uses 256 of them per centroid
PROBE_DIM = 64  # divided evenly by the usual numbers of parts


def check_factory(index_type: str) -> None:
    """Raises InputError if FAISS does not know the type, before hours of encoding."""
    try:
        faiss.index_factory(PROBE_DIM, index_type, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "could not parse" in str(error):
            raise _refusal(index_type, error) from error
        # Otherwise perhaps only the dimension PROBE_DIM does not suit it.


def write_converted(flat: FlatFile, path: Path, index_type: str) -> None:
    """Trains an index of this type on a sample of the vectors, adds all of them and writes it to `path`.

    Raises InputError if the type does not suit these vectors, or if the disk is full.
    """
    try:
        index = faiss.index_factory(flat.dim, index_type, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            print(f"training {index_type} on {min(flat.rows, TRAIN_ROWS)} of {flat.rows} vectors", flush=True)
            index.train(training_sample(flat))
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


def training_sample(flat: FlatFile) -> np.ndarray:
    """(T, D) float32: all vectors, or TRAIN_ROWS of them, always the same."""
    if flat.rows <= TRAIN_ROWS:
        return flat.read(0, flat.rows)
    rows = np.sort(np.random.default_rng(0).choice(flat.rows, TRAIN_ROWS, replace=False))
    return np.array(flat.vectors()[rows])


def _refusal(index_type: str, error: RuntimeError) -> InputError:
    reason = re.sub(r"^.*\.(?:cpp|h):\d+: ", "", str(error).strip().partition("\n")[0])  # C++ function, file, line
    return InputError(
        f"FAISS cannot make --index_type {index_type} ({reason}): give one such as Flat, SQ8, IVF4096,SQ8 or HNSW32"
    )
