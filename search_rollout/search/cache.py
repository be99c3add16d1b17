"""Stores search answers as JSON in a SQLite file that processes share and that outlives a run.

Use one file per corpus: its keys name the kind of backend, not the documents. Keep the file on a local disk: SQLite's
locks do not work on most network file systems.
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCK_WAIT_S = 10.0  # how long to wait for another process's write
SHAPES = ([str, str], [str, str, float])  # of a row
SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (
    namespace TEXT, query TEXT, answer TEXT NOT NULL, stored REAL NOT NULL, PRIMARY KEY (namespace, query)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY CHECK (id = 1), made INTEGER NOT NULL);
INSERT OR IGNORE INTO calls VALUES (1, 0);
COMMIT;
"""


class CacheError(ValueError):
    """The file cannot be used; the message says why."""


def calls_made(path: str) -> int:
    """The budget calls counted in the file; 0 if it does not exist yet."""
    if not Path(path).is_file():
        return 0
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as database:
        return database.execute("SELECT made FROM calls").fetchone()[0]


class SearchCache:
    """The answers of one namespace. Belongs to one event loop; SQLite runs in a thread of its own.

    If the file fails, only the cache is lost: `get` finds nothing, and the log says so once.
    """

    def __init__(self, path: str, namespace: str, *, max_age_s: float, read_only: bool = False) -> None:
        """Raises CacheError. `read_only`: nothing is written, and answers do not expire."""
        self.path = path
        self._namespace = namespace
        self._max_age_s = max_age_s
        self._read_only = read_only
        self._failure_logged = False
        try:
            self._database = self._open()
        except (sqlite3.Error, OSError) as error:
            raise CacheError(f"{path} cannot be used as the search cache: {error}") from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search-cache")

    async def get(self, query: str) -> list[list[Any]] | None:
        """The stored rows of a normalised query (`Passage.as_row`); None if they are missing or expired."""
        return await self._in_thread(self._get, query)

    async def put(self, query: str, rows: Sequence[Sequence[str | float]]) -> None:
        await self._in_thread(self._put, query, rows)

    async def take_call(self, budget: int) -> int | None:
        """Counts a call. Returns the calls of all processes so far.

        None if `budget` is spent, or calls cannot be counted: then none are made.
        """
        return await self._in_thread(self._take_call, budget)

    async def close(self) -> None:
        await self._in_thread(self._database.close)
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T | None:
        """The result of the work; None if the file fails, or what it holds."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        except (sqlite3.Error, ValueError, RecursionError) as error:
            if not self._failure_logged:
                self._failure_logged = True
                logger.error("the search cache %s fails (logged once): %s", self.path, error)
            return None

    def _open(self) -> sqlite3.Connection:
        if self._read_only and not Path(self.path).is_file():
            raise OSError("there is no such file")
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            if self._read_only:
                database.execute("PRAGMA query_only = ON")
                database.execute("SELECT count(*) FROM answers WHERE namespace = ''")  # fails on any other file
            else:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.executescript(SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _get(self, query: str) -> list[list[Any]] | None:
        oldest = 0.0 if self._read_only else time.time() - self._max_age_s
        found = self._database.execute(
            "SELECT answer FROM answers WHERE namespace = ? AND query = ? AND stored >= ?",
            (self._namespace, query, oldest),
        ).fetchone()
        return _checked_rows(json.loads(found[0])) if found else None

    def _put(self, query: str, rows: Sequence[Sequence[str | float]]) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
            (self._namespace, query, json.dumps(rows), time.time()),
        )

    def _take_call(self, budget: int) -> int | None:
        counted = self._database.execute(
            "UPDATE calls SET made = made + 1 WHERE made < ? RETURNING made", (budget,)
        ).fetchone()
        return counted[0] if counted else None


def _checked_rows(answer: Any) -> list[list[Any]]:
    """The answer, if it is a list of rows of title, text and perhaps a score. Raises ValueError on anything else."""
    if isinstance(answer, list) and all(isinstance(row, list) and [*map(type, row)] in SHAPES for row in answer):
        return answer
    raise ValueError("an answer is not a list of titles and texts")
