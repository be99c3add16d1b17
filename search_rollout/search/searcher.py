"""Searching, whatever finds the passages: one policy of limits, repeats and fall-backs. No trouble ends a rollout.

A `PassageSource` asks one service once. `Searcher` stands in front of one or several that are interchangeable:

    cache       an answer that is known already, or that another rollout is waiting for, is not searched again
    place       at most `concurrency` queries are under way at once
    try         the least busy source that is up, then the next one, until one answers
    repeat      after what can get better, as `http_client.Retry` says, within `timeout_s` for everything together
    give in     `SearchResult.error`; the rollout decides what becomes of that
"""

import asyncio
import logging
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from search_rollout.http_client import RequestFailed, Retry, ServiceRefused, TransientFailure
from search_rollout.search.cache import SearchCache
from search_rollout.search.circuit_breaker import CircuitBreaker
from search_rollout.search.usage import SearchUsage

logger = logging.getLogger(__name__)

PAUSE_S = 0.2  # the model is told quickly that a search failed
ABORT_POLL_S = 0.25
REFUSED_S = 60.0  # a service that refuses everybody is asked again this rarely
QUIET_S = 60.0  # between two warnings of failing searches
MAX_SAID = 100  # different messages that are each said once
MAX_TITLE, MAX_TEXT = 500, 20_000  # characters of a passage
MAX_QUERY = 2000  # characters that are sent: servers refuse what is much longer

Origin = Literal["backend", "cache", "shared"]


class Passage(NamedTuple):
    """One document of the corpus."""

    title: str
    text: str

    @classmethod
    def from_contents(cls, contents: str) -> "Passage":
        """From a corpus line's `contents`: a title on the first line, usually in quotes, and text below it."""
        title, _, text = contents.partition("\n")
        return cls(title.strip().strip('"'), text.strip())


@dataclass
class SearchResult:
    """What came of one query. `error` says why there is nothing; then `passages` is empty."""

    query: str
    passages: list[Passage] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    origin: Origin = "backend"


class PassageSource(Protocol):
    """One service that finds passages; belongs to one event loop. `str()` names it in messages."""

    @property
    def namespace(self) -> str:
        """What an answer depends on besides the query: sources with the same one are interchangeable."""
        ...

    async def find(self, query: str) -> list[Passage]:
        """The best passages, by one call. Raises RequestFailed: see http_client for its kinds."""
        ...

    async def close(self) -> None:
        """Releases connections."""
        ...


class NotInCache(RequestFailed):
    """A replay was asked for what was never recorded."""


class BudgetUsed(ServiceRefused):
    """No more calls may be made."""


class NothingIsUp(RequestFailed):
    """Every source is left alone for now; the message says what each one's trouble is."""


async def search_all(
    searcher: "Searcher", queries: Sequence[str], aborted: Callable[[], bool]
) -> list[SearchResult] | None:
    """The results of all queries, in their order; None as soon as `aborted()` turns true."""
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
    """Searches by interchangeable sources; belongs to one event loop. It closes the sources and the cache it is given.

    `timeout_s` bounds one query with its repeats, from when it has its place. `budget` is the most calls that may be
    made, 0 for any number: with a cache they are counted in its file, for all processes, else in `usage`.
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
        # With another source to turn to, a silent one must leave time for it.
        self._try_s = timeout_s if len(sources) == 1 else timeout_s / 2
        self._retry = Retry(retries, PAUSE_S)
        self._cache = cache
        self._replay = replay
        self._budget = budget
        self._usd_per_call = usd_per_call
        self._flights: dict[str, _Flight] = {}
        self._warned_of_budget = False
        self._said: set[str] = set()
        self._quiet_until = 0.0

    async def search(self, query: str) -> SearchResult:
        """The best passages for `query`; trouble with the search goes into `SearchResult.error`."""
        began = time.monotonic()
        result = SearchResult(query)
        try:
            result.passages, result.origin = await self._shared(_sendable(query))
        except RequestFailed as failure:
            result.error = str(failure)
            self._tell(failure)
        result.seconds = time.monotonic() - began
        self.usage.count(result.origin, failed=result.error is not None)
        return result

    async def close(self) -> None:
        """Ends what is under way and releases connections and the cache."""
        for flight in self._flights.values():
            flight.task.cancel()
        for guarded in self._sources:
            await guarded.source.close()
        if self._cache is not None:
            await self._cache.close()

    async def _shared(self, query: str) -> tuple[list[Passage], Origin]:
        """Joins an equal query that is under way; the last one to leave ends it."""
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
                return [Passage(title, text) for title, text in rows], "cache"
            if self._replay:
                raise NotInCache(f"SEARCH_CACHE_MODE=replay: {self._cache.path} has no answer to {query!r}")
        async with self._semaphore:
            deadline = time.monotonic() + self._timeout_s
            passages = await self._retry.run(lambda: self._ask(query, deadline), deadline=deadline)
        passages = [Passage(passage.title[:MAX_TITLE], passage.text[:MAX_TEXT]) for passage in passages]
        if self._cache is not None:
            await self._cache.put(key, [(passage.title, passage.text) for passage in passages])
        return passages, "backend"

    async def _ask(self, query: str, deadline: float) -> list[Passage]:
        """One try: the sources that are up, one after the other, until one answers."""
        failure: RequestFailed | None = None
        for guarded in self._available():
            try:
                await self._take_call()
                return await guarded.find(query, min(self._try_s, deadline - time.monotonic()))
            except (TransientFailure, ServiceRefused) as trouble:
                failure = trouble
        if failure is None:
            raise NothingIsUp("; ".join(guarded.trouble for guarded in self._sources))
        raise failure

    def _available(self) -> "Iterator[_Guarded]":
        """The sources that are up, least busy first; a source is asked for its leave only when its turn comes."""
        for guarded in sorted(self._sources, key=lambda guarded: guarded.running):
            if guarded.breaker.allows():
                yield guarded

    async def _take_call(self) -> None:
        """Counts a call. Raises BudgetUsed if there are none left."""
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

    def _tell(self, failure: RequestFailed) -> None:
        """Logs a failure: what needs a human once, anything else now and then."""
        if isinstance(failure, BudgetUsed | NotInCache):
            if str(failure) not in self._said and len(self._said) < MAX_SAID:
                self._said.add(str(failure))
                logger.error("%s (said once)", failure)
        elif (
            not isinstance(failure, ServiceRefused | NothingIsUp) and time.monotonic() >= self._quiet_until
        ):  # that was told already
            self._quiet_until = time.monotonic() + QUIET_S
            logger.warning("a search fails (said at most once in %g s): %s", QUIET_S, failure)


class _Flight:
    """A query under way, and how many wait for it."""

    def __init__(self, task: "asyncio.Future[tuple[list[Passage], Origin]]") -> None:
        self.task = task
        self.waiting = 0


class _Guarded:
    """A source with its circuit breaker, which tells the log when it goes and when it is back."""

    def __init__(self, source: PassageSource) -> None:
        self.source = source
        self.breaker = CircuitBreaker()
        self.running = 0
        self.trouble = ""  # the last one
        self._down_since: float | None = None

    async def find(self, query: str, timeout_s: float) -> list[Passage]:
        """As the source's, within `timeout_s`."""
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
        if failure.status == 429:  # it is busy, and not down
            return
        self.breaker.failed(began)
        self._note(failure)

    def _note(self, failure: RequestFailed) -> None:
        self.trouble = str(failure)
        if self.breaker.is_open and self._down_since is None:
            self._down_since = time.monotonic()
            level = logging.ERROR if isinstance(failure, ServiceRefused) else logging.WARNING
            logger.log(level, "a search service is left alone until it answers again (said once): %s", failure)

    def _answered(self) -> None:
        self.breaker.succeeded()
        if self._down_since is not None:
            logger.warning("%s answers again after %.1f s", self.source, time.monotonic() - self._down_since)
            self._down_since = None


def normalised(query: str) -> str:
    """What equal queries have in common: case, width and spacing of characters do not matter."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def _sendable(query: str) -> str:
    """The query as any service takes it: not too long, and without halves of characters."""
    return query[:MAX_QUERY].encode("utf-8", "replace").decode("utf-8")
