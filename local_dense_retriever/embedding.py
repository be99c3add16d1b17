"""Encodes a corpus chunk by chunk into a file that stays usable when the process is killed."""

import argparse
import json
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.encoder import Encoder
from local_dense_retriever.errors import InputError
from local_dense_retriever.files import beside, lock, partial, sync, write_json
from local_dense_retriever.flat_file import HEADER, FlatFile, write_flat_header
from local_dense_retriever.notes import IndexNote

# Passages between two progress notes. No batch crosses a chunk's border, so batches and vectors do not depend on where
# an earlier run stopped or on the number of GPUs.
CHUNK_ROWS = 1024
PROGRESS = ".partial.json"  # ends the name of the file that counts the rows of an unfinished index


class GrowingIndex(Protocol):
    rows_done: int

    def append(self, vectors: NDArray[np.float32]) -> None: ...  # (B, D) float32, the next rows


class PartialEmbeddings:
    """The embeddings made so far: an incomplete flat index file, open in one process at a time."""

    def __init__(self, index_path: Path, source: IndexNote) -> None:
        """Continues an earlier run with the same source; otherwise starts over and prints the reason."""
        self.path = partial(index_path)
        self._note_path = beside(index_path, PROGRESS)
        self._source = source
        self._file = self.path.open("ab")
        if not lock(self._file, self.path):
            self._file.close()
            raise InputError(f"another process is building {index_path}: let it finish, or stop it")
        self.rows_done = self._rows_to_keep()
        if self.rows_done == 0:
            self._note_path.unlink(missing_ok=True)  # first, so that a note never counts rows that are gone
            self._file.truncate(0)
            write_flat_header(self._file, source.rows, source.dim)
            self._file.flush()
        self._file.truncate(self._size(self.rows_done))  # drops what a killed run wrote after its last note

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _size(self, rows: int) -> int:
        return HEADER.size + rows * self._source.dim * 4

    def _rows_to_keep(self) -> int:
        if not self._note_path.exists():
            return 0
        try:
            note = json.loads(self._note_path.read_text())
            rows_done, source = int(note["rows_done"]), IndexNote(**note["source"])
        except (ValueError, KeyError, TypeError):
            print(f"starting afresh: {self._note_path} cannot be read")
            return 0
        same_type = source._replace(index_type=self._source.index_type)  # the embeddings are the same for all types
        if changed := self._source.differences(same_type):
            print(f"starting afresh: the unfinished index was made with another {changed}")
            return 0
        if self.path.stat().st_size < self._size(rows_done):
            print(f"starting afresh: {self.path} is shorter than {self._note_path} says")
            return 0
        print(f"continuing an unfinished index: {rows_done} of {self._source.rows} passages are done")
        return rows_done

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Appends (B, D) float32 rows. The rows reach the disk before the note that counts them."""
        self._file.write(vectors.astype(np.float32, copy=False).tobytes())
        sync(self._file)
        self.rows_done += len(vectors)
        write_json(self._note_path, {"source": self._source._asdict(), "rows_done": self.rows_done})

    def finish(self) -> FlatFile:
        assert self.rows_done == self._source.rows
        return FlatFile(self.path, self._source.rows, self._source.dim)

    def forget(self) -> None:
        self._note_path.unlink()


def load_named_encoder(args: argparse.Namespace, corpus: Corpus) -> tuple[Encoder, IndexNote]:
    """The encoder that `args` name, and the note of an index of the corpus that is made with it."""
    from local_dense_retriever.encoder_choice import load_encoder  # imported late: checks before this need no torch

    print(f"encoding {corpus.path} with {args.retriever_model}", flush=True)
    encoder = load_encoder(args.retriever_name, args.retriever_model, batch_size=args.batch_size)
    named = (args.retriever_name, args.retriever_model, args.index_type)
    return encoder, IndexNote(corpus.digest, len(corpus), encoder.dim, *named)


def embed(corpus: Corpus, encoder: Encoder, done: GrowingIndex, args: argparse.Namespace | None = None) -> None:
    """Encodes the passages missing from `done`, chunk by chunk.

    With several GPUs, one process per GPU loads the corpus and the encoder named in `args`. Raises InputError if the
    encoder returns NaN for a passage, which no search would find.
    """
    from local_dense_retriever.machine import gpus

    starts = range(done.rows_done, len(corpus), CHUNK_ROWS)
    chunks = [range(start, min(start + CHUNK_ROWS, len(corpus))) for start in starts]
    if args is not None and len(devices := gpus()) > 1:
        encoded = _encode_on(devices, chunks, corpus.path, args)
    else:
        encoded = (encode_chunk(corpus, encoder, rows) for rows in chunks)
    fill(done, finite(encoded, done.rows_done), len(corpus))


def fill(done: GrowingIndex, blocks: Iterable[NDArray[np.float32]], total: int) -> None:
    """Appends blocks of rows to `done`, until it has `total`."""
    with tqdm(total=total, initial=min(done.rows_done, total), unit=" passages") as progress:
        for vectors in blocks:
            done.append(vectors)
            progress.update(len(vectors))


def finite(blocks: Iterable[NDArray[np.float32]], first: int) -> Iterator[NDArray[np.float32]]:
    """The same blocks, of which `first` is the first row. Raises InputError for a row with NaN."""
    for vectors in blocks:
        if not (is_finite := np.isfinite(vectors).all(axis=1)).all():
            number = first + int(is_finite.argmin()) + 1
            raise InputError(f"the encoder returns NaN for passage number {number} of the corpus: correct that passage")
        first += len(vectors)
        yield vectors


def encode_chunk(corpus: Corpus, encoder: Encoder, rows: range) -> NDArray[np.float32]:
    """(len(rows), D) float32."""
    return encoder.encode_passages([passage.contents for passage in corpus.passages(rows)])


def _encode_on(
    devices: Sequence[str], chunks: Sequence[range], corpus: Path, args: argparse.Namespace
) -> Iterator[NDArray[np.float32]]:
    """The chunks' vectors in order, computed by one process per device."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting = context.SimpleQueue()
    for device in devices:
        waiting.put(device)
    try:
        with ProcessPoolExecutor(len(devices), context, _start_worker, (waiting, corpus, args)) as pool:
            yield from pool.map(_encode_in_worker, chunks)
    except BrokenProcessPool as error:
        raise InputError("a worker process has died; see its output above, then run the command again") from error


_worker: tuple[Corpus, Encoder] | None = None  # in each process of the pool


def _start_worker(waiting: SimpleQueue[str], corpus: Path, args: argparse.Namespace) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from local_dense_retriever.encoder_choice import load_encoder

    encoder = load_encoder(args.retriever_name, args.retriever_model, batch_size=args.batch_size, device=waiting.get())
    _worker = Corpus(corpus), encoder


def _end_with_parent() -> None:
    """Ends a worker when its parent is killed; otherwise it would hold its GPU forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(rows: range) -> NDArray[np.float32]:
    assert _worker is not None
    return encode_chunk(*_worker, rows)
