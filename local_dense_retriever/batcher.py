"""Batches the queries of concurrent requests and searches them in one thread.

While one batch is being searched the next one fills, so batches grow with the load; the window matters only to the
first query after a pause. Equal queries are searched once: the second joins the first, and later ones are answered from
a cache. If a batch fails, its queries are searched one by one, so that a bad query fails alone. Everything but the
search itself runs on the event loop, so nothing needs a lock.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

from local_dense_retriever.metrics import Metrics
from local_dense_retriever.searcher import Hit, UnavailableError

Search = Callable[[Sequence[str], int], list[list[Hit]]]  # queries, topk -> the hits of each query, best first

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The queue is full: try again later."""


class SearchFailedError(Exception):
    """Searching fails for every query; the log has the traceback."""


class QueryFailedError(Exception):
    """The search of the query in the message fails while others succeed; the log has the traceback."""


@dataclass(frozen=True)
class Limits:
    window_s: float = 0.005  # how long a query waits for others when nothing is being searched
    max_batch: int = 64  # distinct queries searched at once
    max_queue: int = 4096  # distinct queries waiting
    cache_size: int = 10_000  # queries whose hits are kept, about 3 kB each at topk 3; 0 keeps none


@dataclass
class _Entry:
    """A query that is waiting or being searched."""

    topk: int = 0  # the largest requested
    requests: int = 0  # requests that wait for it
    hits: asyncio.Future[list[Hit]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Kept(NamedTuple):
    topk: int  # as requested; fewer hits mean that there are no more
    hits: list[Hit]


class Batcher:
    """Searches in `owner`, an executor of one thread, which must be the only user of what `search` touches."""

    def __init__(self, search: Search, owner: Executor, limits: Limits, metrics: Metrics) -> None:
        """Call it on the event loop that will call `search`."""
        self._search = search
        self._owner = owner
        self._limits = limits
        self._metrics = metrics
        self._waiting: dict[str, _Entry] = {}  # in the order of arrival
        self._running: dict[str, _Entry] = {}
        self._cache: OrderedDict[str, _Kept] = OrderedDict()  # the least recently used first
        self._good_query: str | None = None  # the last one that was searched with success
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        metrics.queue.set_function(lambda: len(self._waiting))
        metrics.cache.set_function(lambda: len(self._cache))

    async def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """For each query its nearest passages, best first: topk of them, or all if there are fewer.

        Raises QueueFullError (without waiting), SearchFailedError, QueryFailedError and UnavailableError. If it is
        cancelled, its queries leave the queue.
        """
        found = {query: self._kept(query, topk) for query in queries}
        missing = [query for query, hits in found.items() if hits is None]
        self._metrics.queries.labels("cached").inc(len(found) - len(missing))
        if missing:
            found |= await self._searched(missing, topk)
        return [(found[query] or [])[:topk] for query in queries]

    def close(self) -> None:
        self._task.cancel()

    async def _searched(self, queries: list[str], topk: int) -> dict[str, list[Hit]]:
        under_way = {query: self._under_way(query, topk) for query in queries}
        new = {query: _Entry() for query, entry in under_way.items() if entry is None}
        if len(self._waiting) + len(new) > self._limits.max_queue:
            raise QueueFullError
        self._waiting |= new
        self._metrics.queries.labels("queued").inc(len(new))
        self._metrics.queries.labels("joined").inc(len(queries) - len(new))

        entries = {query: entry or new[query] for query, entry in under_way.items()}
        for entry in entries.values():
            entry.topk = max(entry.topk, topk)
            entry.requests += 1
        self._arrived.set()
        try:
            await asyncio.wait([entry.hits for entry in entries.values()])  # unlike gather, it does not cancel them
        finally:
            for query, entry in entries.items():
                entry.requests -= 1
                if entry.requests == 0 and self._waiting.get(query) is entry:
                    del self._waiting[query]
        return {query: entry.hits.result() for query, entry in entries.items()}

    def _under_way(self, query: str, topk: int) -> _Entry | None:
        running = self._running.get(query)
        return running if running and running.topk >= topk else self._waiting.get(query)

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                await self._until_waiting(1)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.window_s):
                        await self._until_waiting(self._limits.max_batch)
            # All callers may have left by now.
            if batch := dict(itertools.islice(self._waiting.items(), self._limits.max_batch)):
                await self._search_batch(batch)

    async def _until_waiting(self, count: int) -> None:
        while len(self._waiting) < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def _search_batch(self, batch: dict[str, _Entry]) -> None:
        for query in batch:
            del self._waiting[query]
        self._running = batch
        began = time.perf_counter()
        try:
            if not await self._answered(batch):
                await self._answer_singly(batch)
        except UnavailableError as error:
            log.error("the index does not answer: queries=%d %s", len(batch), error)
            for entry in batch.values():
                if not entry.hits.done():
                    entry.hits.set_exception(UnavailableError())
                    entry.hits.exception()  # as below
        finally:
            self._running = {}
        self._metrics.batch_queries.observe(len(batch))
        self._metrics.batch_seconds.observe(time.perf_counter() - began)

    async def _answered(self, batch: dict[str, _Entry]) -> bool:
        """Searches the queries together; False if that fails."""
        found = await self._found(list(batch), max(entry.topk for entry in batch.values()))
        if found is None:
            return False
        for (query, entry), hits in zip(batch.items(), found, strict=True):
            kept = _Kept(entry.topk, hits[: entry.topk])
            entry.hits.set_result(kept.hits)
            self._cache[query] = kept
            self._cache.move_to_end(query)
            if len(self._cache) > self._limits.cache_size:
                self._cache.popitem(last=False)
            self._good_query = query
        return True

    async def _answer_singly(self, batch: dict[str, _Entry]) -> None:
        """Searches the queries of a failed batch one by one, so that a bad query does not fail the others.

        If a query that succeeded before now fails too, the whole batch fails at once.
        """
        works = self._good_query is not None and await self._found([self._good_query], 1) is not None
        failed = batch
        if works or self._good_query is None:
            failed = {query: entry for query, entry in batch.items() if not await self._answered({query: entry})}
        works = works or len(failed) < len(batch)
        for query, entry in failed.items():
            entry.hits.set_exception(QueryFailedError(query) if works else SearchFailedError())
            entry.hits.exception()  # else asyncio complains if all callers have left and nobody retrieves it

    async def _found(self, queries: list[str], topk: int) -> list[list[Hit]] | None:
        """The hits of each query; None, with the reason logged, if the search fails. Raises UnavailableError if its
        service is down: then searching the queries one by one would only wait for each of them."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._owner, self._search, queries, topk)
            if len(found) != len(queries):
                raise ValueError(f"{len(found)} results for {len(queries)} queries")
        except UnavailableError:
            raise
        except Exception:
            log.exception("a search failed: queries=%d topk=%d first=%.200r", len(queries), topk, queries[0])
            return None
        return found

    def _kept(self, query: str, topk: int) -> list[Hit] | None:
        kept = self._cache.get(query)
        if kept is None or (kept.topk < topk and len(kept.hits) == kept.topk):
            return None
        self._cache.move_to_end(query)
        return kept.hits
