"""Client of one retriever server's `POST /retrieve`.

A rollout searches in bursts, and a request costs more than a query. Queries are sent immediately; once MAX_REQUESTS
are in flight, later queries are batched into one request.
"""

import asyncio
import math
from collections import deque
from typing import Any

from search_rollout.http_client import JsonClient, RequestFailed, ServiceRefused
from search_rollout.search.passage import Passage

MAX_REQUESTS = 16  # in flight at once
MAX_QUERIES = 16  # in one request
ONE_QUERYS_FAULT = (400, 413, 414, 422, 500)  # one bad query can fail its batch with these

Waiting = tuple[str, asyncio.Future[list[Passage]]]


class LocalRetriever:
    """See `PassageSource`. It never retries; `timeout_s` bounds one request."""

    def __init__(self, url: str, *, topk: int, timeout_s: float, api_key: str = "") -> None:
        self.url = url.rstrip("/").removesuffix("/retrieve")
        self.namespace = f"local topk={topk}"
        self._client = JsonClient(self.url, timeout_s=timeout_s, retries=0, pause_s=0.0)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._topk = topk
        self._waiting: deque[Waiting] = deque()
        self._requests: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def __str__(self) -> str:
        return f"{self.url}/retrieve"

    async def find(self, query: str) -> list[Passage]:
        """The `topk` best passages. Raises RequestFailed."""
        answer: asyncio.Future[list[Passage]] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, answer))
        self._schedule()
        return await answer

    async def close(self) -> None:
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        await self._client.close()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)  # after all searches of this loop iteration

    def _send(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._requests) < MAX_REQUESTS:
            together = [self._waiting.popleft() for _ in range(min(MAX_QUERIES, len(self._waiting)))]
            wanted = [(query, answer) for query, answer in together if not answer.done()]  # the others were cancelled
            if wanted:
                request = asyncio.create_task(self._answer(wanted))
                self._requests.add(request)
                request.add_done_callback(self._finished)

    def _finished(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        self._schedule()

    async def _answer(self, wanted: list[Waiting]) -> None:
        """Gives each waiting query its passages or its failure."""
        try:
            found = await self._retrieve([query for query, _ in wanted])
            for (_, answer), passages in zip(wanted, found, strict=True):
                if not answer.done():
                    answer.set_result(passages)
        except Exception as failure:  # any failure goes to the waiting queries
            if len(wanted) > 1 and isinstance(failure, RequestFailed) and failure.status in ONE_QUERYS_FAULT:
                await asyncio.gather(*(self._answer([one]) for one in wanted))
            for _, answer in wanted:
                if not answer.done():
                    answer.set_exception(failure)
        finally:
            for _, answer in wanted:
                answer.cancel()  # no effect unless this client is closing

    async def _retrieve(self, queries: list[str]) -> list[list[Passage]]:
        body = {"queries": queries, "topk": self._topk, "return_scores": True}
        try:
            answer = await self._client.post("/retrieve", body, self._headers)
        except RequestFailed as failure:
            if failure.status in (401, 403):
                raise ServiceRefused(f"{failure}. Set RETRIEVAL_API_KEY to the key of this retriever.") from failure
            raise
        try:
            results = answer["result"]
            if len(results) != len(queries):
                raise ValueError(f"{len(results)} results for {len(queries)} queries")
            return [[_passage(item) for item in result[: self._topk]] for result in results]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as wrong:
            message = f"{self.url}/retrieve sent an unexpected answer: {wrong!r}"
            raise RequestFailed(message[:300]) from wrong


def _passage(item: dict[str, Any]) -> Passage:
    """Reads `{"document": {…}, "score": …}` or a bare document; a document has `contents`, or `title` and `text`."""
    document = item.get("document", item)
    contents = document["contents"] if "contents" in document else f"{document.get('title', '')}\n{document['text']}"
    if not isinstance(contents, str):
        raise TypeError("a document's contents are not a string")
    score = item.get("score")
    if not isinstance(score, int | float) or not math.isfinite(score):
        return Passage.from_contents(contents)
    return Passage.from_contents(contents, round(float(score), 4))
