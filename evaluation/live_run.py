"""One run for the server. Each request reads further in its files, which may still be growing."""

import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.page_data import Trajectories, pack
from evaluation.records import TRAJECTORIES
from evaluation.run_list import Run
from evaluation.sample_files import read_samples
from evaluation.viewer_data import Json, trajectory

TAIL_BYTES = 64  # before the position where reading stopped; if they change, the file was rewritten


class Rewritten(LookupError):
    """The rows that a page asks for no longer exist: the files were written again."""


class _Cursor:
    """How far one file has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = self.lines = 0
        self._inode = path.stat().st_ino
        self._tail = b""

    def remember(self) -> None:
        self._tail = self._read_tail()

    def is_valid(self) -> bool:
        """False if the part already read has changed."""
        try:
            return self.path.stat().st_ino == self._inode and self._read_tail() == self._tail
        except OSError:
            return False

    def _read_tail(self) -> bytes:
        with self.path.open("rb") as file:
            begin = max(0, self.at - TAIL_BYTES)
            file.seek(begin)
            return file.read(self.at - begin)


class LiveRun:
    """Rows and chunks of a run, for any number of pages. All methods are thread-safe."""

    def __init__(self, run: Run, tokenizer: Any, trust_pickle: bool = False) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self._samples = functools.partial(read_samples, trust_pickle=trust_pickle)
        self._lock = threading.Lock()
        self._generation = 0
        self._begin()

    def _begin(self) -> None:
        """Starts over, so that all files are read again."""
        self._generation += 1
        self._found = Trajectories(self.tokenizer)
        self._cursors: dict[Path, _Cursor] = {}
        self._origins: list[tuple[Path, int, int]] = []  # per row: file, and what read_samples needs to find it

    def index(self, generation: int, rows: int, tokens: int, *, budget_s: float) -> bytes:
        """What is new to a page with this many rows and tokens; everything if the page read another `generation`.

        First reads the files for up to `budget_s` seconds, but at least one sample; `more` says whether data is left.
        """
        with self._lock:
            more, error = self._read(time.monotonic() + budget_s)
            if generation != self._generation:
                rows = tokens = 0
            index = self._found.index(self.run.model(), rows=rows, tokens=tokens)
            state = {"generation": self._generation, "begin": rows, "more": more, "error": error}
            return pack(index | state, level=1)  # a user is waiting, and the traffic is local

    def chunk(self, generation: int, number: int) -> bytes:
        """The records of a chunk. Raises Rewritten."""
        with self._lock:
            if generation != self._generation or not 0 <= number < len(self._found.starts):
                raise Rewritten
            return self._found.chunk(number)

    def fields(self, generation: int, row: int) -> Json:
        """The Sample of a row. Raises Rewritten."""
        with self._lock:
            if generation != self._generation or not 0 <= row < len(self._origins):
                raise Rewritten
            path, begin, number = self._origins[row]
        if path.suffix == ".pt":
            return next(sample.fields for sample in self._samples(path) if sample.number == number)
        return next(self._samples(path, begin=begin)).fields

    def show(self, fields: Json) -> Json:
        """Row, record and token texts of a Sample that is not in the files."""
        with self._lock:
            row, record = trajectory(fields, self.run.name, self._found.texts)
            table = self._found.texts.table
            return {"row": row, "record": record, "tokens": {id: table[id] for id in set(record["ids"])}}

    def _read(self, deadline: float) -> tuple[bool, str]:
        """Reads on until the deadline; returns whether data is left, and why the files cannot be read further."""
        if not all(cursor.is_valid() for cursor in self._cursors.values()):
            self._begin()
        try:
            for path in self.run.files():
                cursor = self._cursors.setdefault(path, _Cursor(path))
                try:
                    for _ in self._read_file(cursor):
                        if time.monotonic() > deadline:
                            return True, ""
                finally:
                    cursor.remember()
        except (ValueError, OSError) as error:
            return False, str(error)
        return False, ""

    def _read_file(self, cursor: _Cursor) -> Iterator[None]:
        is_dump = cursor.path.suffix == ".pt"
        if is_dump and cursor.at:
            return
        name = self.run.name if cursor.path.name == TRAJECTORIES else f"{self.run.name}/{cursor.path.stem}"
        for sample in self._samples(cursor.path, begin=cursor.at, lines_before=cursor.lines):
            self._found.add(sample, name)
            self._origins.append((cursor.path, cursor.at, sample.number))
            cursor.at, cursor.lines = cursor.at + sample.bytes_read, sample.number
            if not is_dump:  # a dump is always read whole, so stopping halfway would read it twice
                yield
