"""Searching: passages for a query, from a retriever server. No trouble there ever ends a rollout."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from search_rollout.http_client import JsonClient, RequestFailed

logger = logging.getLogger(__name__)

PAUSE_S = 0.2  # the model is told quickly that a search failed
ABORT_POLL_S = 0.25


@dataclass(frozen=True)
class Passage:
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


class SearchBackend(Protocol):
    """Anything that finds passages. Implementations never raise; trouble goes into `SearchResult.error`."""

    async def search(self, query: str) -> SearchResult:
        """The best passages for `query`."""
        ...

    async def close(self) -> None:
        """Releases connections."""
        ...


async def search_all(
    backend: SearchBackend, queries: Sequence[str], aborted: Callable[[], bool]
) -> list[SearchResult] | None:
    """The results of all queries, in their order; None as soon as `aborted()` turns true."""
    tasks = [asyncio.ensure_future(backend.search(query)) for query in queries]
    try:
        while not aborted():
            if all(task.done() for task in tasks):
                return [task.result() for task in tasks]
            await asyncio.wait(tasks, timeout=ABORT_POLL_S)
        return None
    finally:
        for task in tasks:
            task.cancel()


class LocalRetriever:
    """Client of a retriever server's `POST /retrieve`; belongs to one event loop.

    At most `concurrency` queries run at once; `timeout_s` bounds one with its retries, from when it has its place.
    """

    def __init__(self, url: str, *, topk: int, concurrency: int, timeout_s: float, retries: int) -> None:
        self._url = url.rstrip("/").removesuffix("/retrieve")
        self._client = JsonClient(self._url, timeout_s=timeout_s, retries=retries, pause_s=PAUSE_S)
        self._topk = topk
        self._timeout_s = timeout_s
        self._semaphore = asyncio.Semaphore(concurrency)
        self._failing = False

    async def search(self, query: str) -> SearchResult:
        """The `topk` best passages; see `SearchBackend`."""
        started = time.monotonic()
        passages: list[Passage] = []
        error = None
        try:
            async with self._semaphore, asyncio.timeout(self._timeout_s):
                body = {"queries": [query], "topk": self._topk, "return_scores": True}
                passages = _passages(await self._client.post("/retrieve", body), self._topk)
        except RequestFailed as failure:
            error = str(failure)
        except TimeoutError:
            error = f"{self._url}/retrieve did not answer within {self._timeout_s:g} s"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as wrong:
            error = f"{self._url}/retrieve answered in a shape that is not /retrieve's: {wrong!r}"[:300]
        if error and not self._failing:
            logger.warning("searches fail, and the model is told so (said once, until one succeeds): %s", error)
        self._failing = error is not None
        return SearchResult(query, passages, error, time.monotonic() - started)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def _passages(answer: Any, topk: int) -> list[Passage]:
    """The first query's passages, from `{"result": [[{"document": {…}, "score": …} or {…}, …]]}`."""
    documents = (item.get("document", item) for item in answer["result"][0][:topk])
    return [Passage.from_contents(_contents(document)) for document in documents]


def _contents(document: dict) -> str:
    if "contents" in document:
        contents = document["contents"]
    else:
        contents = f"{document.get('title', '')}\n{document['text']}"
    if not isinstance(contents, str):
        raise TypeError("a document's contents are not a string")
    return contents
