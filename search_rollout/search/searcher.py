"""Searches with any backend: limits, retries and failover. A failed search never ends a rollout.

A `PassageSource` calls one service once. `Searcher` manages one or several interchangeable sources:

    cache       reuse a known answer, or one that another rollout is waiting for
    slot        run at most `concurrency` queries at once
    try         ask the least busy source that is up, then the next one, until one answers
    retry       repeat after a temporary failure, as `http_client.Retry` says
    wait        while every source is down, for at most `timeout_s` after the last of them went down
    fail        return `SearchResult.error`; the rollout decides what follows

`timeout_s` limits each search with its retries, so a restart that takes less than `timeout_s` loses no search. In a
longer outage every rollout waits for `timeout_s` once; then searches fail immediately, until a source answers
one of the probes, which `CircuitBreaker` allows once a second.
"""

import asyncio
import logging
import math
import random
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import Protocol

from search_rollout.http_client import RequestFailed, Retry, ServiceRefused, TransientFailure
from search_rollout.search.cache import SearchCache
from search_rollout.search.circuit_breaker import CircuitBreaker
from search_rollout.search.passage import Origin, Passage, SearchResult
from search_rollout.search.usage import SearchUsage
from search_rollout.timeline import SEARCH, SEARCH_SLOT, span

logger = logging.getLogger(__name__)

PAUSE_S = 0.2  # before the first repeat of a search
OUTAGE_POLL_S = 0.5  # how often a waiting search looks whether a source is up again
ABORT_POLL_S = 0.25
REFUSED_S = 60.0  # how long a service that refuses everybody is left alone
QUIET_S = 60.0  # between two warnings about failing searches
MAX_LOGGED_ONCE = 100  # different messages that are logged once each
MAX_TITLE, MAX_TEXT = 500, 20_000  # characters of a passage
MAX_QUERY = 2000  # characters that are sent: servers refuse much longer queries


class PassageSource(Protocol):
    """A service that finds passages; belongs to one event loop. `str()` names it in messages."""

    @property
    def namespace(self) -> str:
        """Names everything besides the query that affects an answer; sources with equal names are interchangeable."""

    async def find(self, query: str) -> list[Passage]:
        """Returns the best passages, by one call. Raises RequestFailed; http_client lists its kinds."""

    async def close(self) -> None:
        """Releases connections."""


class NotInCache(RequestFailed):
    """A replay has no record of the query."""


class BudgetUsed(ServiceRefused):
    """No more calls may be made."""


class NothingIsUp(RequestFailed):
    """Every source is left alone for now; the message has each one's last failure."""


async def search_all(
    searcher: "Searcher", queries: Sequence[str], aborted: Callable[[], bool]
) -> list[SearchResult] | None:
    """Returns the results in the order of the queries; None as soon as `aborted()` returns True."""
    tasks = [asyncio.ensure_future(searcher.search(query)) for query in queries]
    try:
        while not aborted():
            if all(task.done() for task in tasks):
                return [task.result() for task in tasks]
            await asyncio.wait(tasks, timeout=ABORT_POLL_S)
        return None
    finally:
        for task in tasks:
            task.cancel()


class Searcher:
    """Searches with interchangeable sources; belongs to one event loop. Owns the sources and the cache: closes them.

    `timeout_s`: seconds for one query with its repeats, counted from when it gets a slot. `budget`: maximum calls,
    0 = unlimited; with a cache its file counts the calls of all processes, else `usage` counts those of this one.
    """

    def __init__(
        self,
        sources: Sequence[PassageSource],
        *,
        concurrency: int,
        timeout_s: float,
        retries: int,
        usage: SearchUsage | None = None,
        cache: SearchCache | None = None,
        replay: bool = False,
        budget: int = 0,
        usd_per_call: float = 0.0,
    ) -> None:
        self.usage = usage or SearchUsage()
        self._sources = [_Guarded(source) for source in sources]
        self._semaphore = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._retry = Retry(retries, PAUSE_S)
        self._cache = cache
        self._replay = replay
        self._budget = budget
        self._usd_per_call = usd_per_call
        self._flights: dict[str, _Flight] = {}
        self._warned_of_budget = False
        self._logged_once: set[str] = set()
        self._quiet_until = 0.0

    async def search(self, query: str) -> SearchResult:
        """Returns the best passages for `query`; a failure goes into `SearchResult.error`."""
        began = time.monotonic()
        result = SearchResult(query)
        with span(SEARCH) as add_to_span:
            try:
                result.passages, result.origin = await self._shared(_sendable(query))
            except RequestFailed as failure:
                result.error = str(failure)
                self._log(failure)
            if add_to_span:
                add_to_span({"origin": result.origin, "failed": result.error is not None})
        result.seconds = time.monotonic() - began
        self.usage.count(result.origin, failed=result.error is not None)
        return result

    async def close(self) -> None:
        for flight in self._flights.values():
            flight.task.cancel()
        for guarded in self._sources:
            await guarded.source.close()
        if self._cache is not None:
            await self._cache.close()

    async def _shared(self, query: str) -> tuple[list[Passage], Origin]:
        """Joins an equal query that is under way; the last caller to leave cancels it."""
        key = normalised(query) if self._cache else query
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._find(query, key)))
        flight.waiting += 1
        try:
            passages, origin = await asyncio.shield(flight.task)
            return passages, "shared" if joined and origin == "backend" else origin
        finally:
            flight.waiting -= 1
            if flight.waiting == 0:
                del self._flights[key]
                flight.task.cancel()

    async def _find(self, query: str, key: str) -> tuple[list[Passage], Origin]:
        if self._cache is not None:
            rows = await self._cache.get(key)
            if rows is not None:
                return [Passage(*row) for row in rows], "cache"
            if self._replay:
                raise NotInCache(f"SEARCH_CACHE_MODE=replay: {self._cache.path} has no answer to {query!r}")
        with span(SEARCH_SLOT):
            await self._semaphore.acquire()
        try:
            passages = await self._persist(query, time.monotonic() + self._timeout_s)
        finally:
            self._semaphore.release()
        passages = [Passage(found.title[:MAX_TITLE], found.text[:MAX_TEXT], found.score) for found in passages]
        if self._cache is not None:
            await self._cache.put(key, [passage.as_row() for passage in passages])
        return passages, "backend"

    async def _persist(self, query: str, deadline: float) -> list[Passage]:
        """Repeats a search, as `Retry` says and as long as an outage is waited for."""
        while True:
            try:
                return await self._retry.run(lambda: self._ask(query, deadline), deadline=deadline)
            except (TransientFailure, NothingIsUp) as failure:
                # random, so that waiting searches do not all come back in the same moment
                pause_s = failure.retry_after_s + random.uniform(0.5, 1.0) * OUTAGE_POLL_S
                if time.monotonic() + pause_s >= min(deadline, self._waits_until()):
                    raise
            await asyncio.sleep(pause_s)

    def _waits_until(self) -> float:
        """When searches stop waiting for the sources to come back, by time.monotonic(); -inf unless all are down."""
        down_since = [guarded.down_since for guarded in self._sources if not guarded.refuses]
        return max(down_since) + self._timeout_s if down_since and math.inf not in down_since else -math.inf

    async def _ask(self, query: str, deadline: float) -> list[Passage]:
        """One try: the sources that are up, least busy first, until one answers; they share the time that is left."""
        failure: RequestFailed | None = None
        sources = sorted(self._sources, key=lambda guarded: guarded.running)
        for at, guarded in enumerate(sources, start=1):
            if not guarded.breaker.allows():
                continue
            try:
                await self._take_call()
                others = sum(not other.breaker.is_open for other in sources[at:])
                return await guarded.find(query, (deadline - time.monotonic()) / (1 + others))
            except (TransientFailure, ServiceRefused) as error:
                failure = error
        raise failure or NothingIsUp("; ".join(guarded.last_failure for guarded in self._sources))

    async def _take_call(self) -> None:
        """Counts a call. Raises BudgetUsed if the budget is used up."""
        if self._budget:
            taken = await self._cache.take_call(self._budget) if self._cache else self.usage.take_call(self._budget)
            where = f", counted in {self._cache.path}" if self._cache else ""
            if taken is None:
                raise BudgetUsed(
                    f"SEARCH_BUDGET={self._budget} calls are used up{where}: raise it, or set it to 0 for no limit"
                )
            if taken >= 0.8 * self._budget and not self._warned_of_budget:
                self._warned_of_budget = True
                logger.warning("%d of SEARCH_BUDGET=%d calls are used%s", taken, self._budget, where)
        self.usage.count_call(self._usd_per_call)

    def _log(self, failure: RequestFailed) -> None:
        """Logs what needs a person once, and other failures at most once in QUIET_S."""
        if isinstance(failure, BudgetUsed | NotInCache):
            if str(failure) not in self._logged_once and len(self._logged_once) < MAX_LOGGED_ONCE:
                self._logged_once.add(str(failure))
                logger.error("%s (logged once)", failure)
        elif isinstance(failure, ServiceRefused | NothingIsUp):
            pass  # logged when the source was left alone
        elif time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S
            logger.warning("a search failed (logged at most once in %g s): %s", QUIET_S, failure)


class _Flight:
    """A query under way, and how many callers wait for it."""

    def __init__(self, task: "asyncio.Future[tuple[list[Passage], Origin]]") -> None:
        self.task = task
        self.waiting = 0


class _Guarded:
    """A source with its circuit breaker; logs when it goes down and when it is back."""

    def __init__(self, source: PassageSource) -> None:
        self.source = source
        self.breaker = CircuitBreaker()
        self.running = 0
        self.last_failure = ""
        self.refuses = False  # waiting would not help
        self._absent = False  # it did not answer the last call, or said that it is still starting
        self._logged_down_at: float | None = None

    @property
    def down_since(self) -> float:
        """When the failures began, by time.monotonic(), if the source is down; inf if it is up."""
        return self.breaker.failing_since if self._absent or self.breaker.is_open else math.inf

    async def find(self, query: str, timeout_s: float) -> list[Passage]:
        began = time.monotonic()
        self.running += 1
        try:
            async with asyncio.timeout(timeout_s):
                passages = await self.source.find(query)
        except TimeoutError:
            failure = TransientFailure(f"{self.source}: no answer within {timeout_s:.3g} s")
            self._failed(failure, began)
            raise failure from None
        except ServiceRefused as refused:
            self.refuses = True
            self.breaker.open(REFUSED_S)
            self._note(refused)
            raise
        except TransientFailure as failure:
            self._failed(failure, began)
            raise
        except RequestFailed:
            self._answered()
            raise
        finally:
            self.running -= 1
        self._answered()
        return passages

    def _failed(self, failure: RequestFailed, began: float) -> None:
        if failure.status == 429:  # busy, not down
            return
        self.refuses, self._absent = False, failure.status in (None, 503)
        self.breaker.failed(began)
        self._note(failure)

    def _note(self, failure: RequestFailed) -> None:
        self.last_failure = str(failure)
        if self.breaker.is_open and self._logged_down_at is None:
            self._logged_down_at = time.monotonic()
            level = logging.ERROR if self.refuses else logging.WARNING
            logger.log(level, "a search service is left alone until it answers again (logged once): %s", failure)

    def _answered(self) -> None:
        self.breaker.succeeded()
        self.refuses = self._absent = False
        if self._logged_down_at is not None:
            logger.warning("%s answers again after %.1f s", self.source, time.monotonic() - self._logged_down_at)
            self._logged_down_at = None


def normalised(query: str) -> str:
    """The cache's form of a query: case, width and spacing of characters do not matter."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def _sendable(query: str) -> str:
    """The query in a form that any service accepts: not too long, without half surrogate pairs."""
    return query[:MAX_QUERY].encode("utf-8", "replace").decode("utf-8")
