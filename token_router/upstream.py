"""Sends requests to a worker, or to another one if that fails, and returns the answer unchanged."""

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from token_router.errors import ApiError, bad_request
from token_router.workers import Worker, Workers

logger = logging.getLogger(__name__)

TRAJECTORY_HEADER = "X-Search-R1-Trajectory"
ROUTING_HEADER = "X-SMG-Routing-Key"  # slime's own

CONNECT_TIMEOUT_S = 10.0  # a generation itself may take as long as the caller waits
PROBE_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 2.0  # below uvicorn's 5 s, so that we never reuse a connection that it is closing
_TROUBLE = (aiohttp.ClientError, OSError, asyncio.TimeoutError)  # what aiohttp raises when a worker fails

_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}

T = TypeVar("T")


class Upstream:
    """Sends calls to workers, and checks whether failed workers have recovered."""

    def __init__(self, workers: Workers, *, probe_pause_s: float) -> None:
        self.workers = workers
        self._probe_pause_s = probe_pause_s

    async def connections(self, _: web.Application) -> AsyncIterator[None]:
        """Keeps the connections open while the application runs."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        async with self._session:
            probing = asyncio.create_task(self._probe_forever())
            try:
                yield
            finally:
                probing.cancel()

    async def generate(self, request: web.Request, body: bytes) -> web.Response:
        """A worker's whole answer to `/generate`, whatever its status. Raises ApiError if no worker gives one."""
        headers = _forwarded(request)
        headers.update({"Content-Type": "application/json", "Accept-Encoding": "identity"})  # we read the answer
        return await self._send(request, "/generate", headers, body, _read)

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Forwards the caller's request to a worker, and streams the answer back byte for byte."""
        body = await request.read() if request.body_exists else None
        path = request.raw_path  # with the query, exactly as it came
        return await self._send(request, path, _forwarded(request), body, lambda answer: _stream(request, answer))

    async def _send(
        self,
        request: web.Request,
        path: str,
        headers: CIMultiDict[str],
        body: bytes | None,
        receive: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    ) -> T:
        """Passes the first answer to `receive` and returns its result. Each worker is tried at most once."""
        key = request.headers.get(ROUTING_HEADER) or namespace_of(request)  # related requests go to the same worker
        tried: dict[Worker, BaseException] = {}
        while worker := self.workers.choose(key, tried):
            url = URL(worker.url + path, encoded=True)
            data = None if body is None else io.BytesIO(body)  # aiohttp warns of large bodies given as bytes
            call = self._session.request(request.method, url, headers=headers, data=data, allow_redirects=False)
            worker.load += 1
            try:
                async with call as answer:
                    received = await receive(answer)
                worker.is_healthy = True
                return received
            except _TROUBLE as error:
                logger.warning("worker %s failed: %r", worker.url, error)
                worker.is_healthy = False
                tried[worker] = error
            finally:
                worker.load -= 1
        if not tried:
            raise ApiError(503, "no_worker", "No worker is registered; POST /workers or --upstream names one.")
        failures = "; ".join(f"{worker.url}: {error!r}" for worker, error in tried.items())
        raise ApiError(502, "workers_failed", f"Every worker refused the connection or dropped it: {failures}")

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(self._probe_pause_s)
            await asyncio.gather(*(self._probe(worker) for worker in self.workers if not worker.is_healthy))

    async def _probe(self, worker: Worker) -> None:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        with contextlib.suppress(*_TROUBLE):
            async with self._session.get(f"{worker.url}/health", timeout=timeout) as answer:
                worker.is_healthy = answer.status < 500


def _forwarded(request: web.Request) -> CIMultiDict[str]:
    """The headers of the caller's request that a worker gets."""
    if not request.raw_path.startswith("/"):
        raise bad_request("The request line must name a path.")
    headers = _end_to_end(request.headers)
    for name in ("Host", "Content-Length", "Expect"):
        headers.popall(name, None)
    return headers


def namespace_of(request: web.Request) -> str:
    """The trajectory that the request belongs to."""
    return request.headers.get(TRAJECTORY_HEADER, "")


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers without those that concern a single connection (hop-by-hop)."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    dropped = _HOP_BY_HOP | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


async def _read(answer: aiohttp.ClientResponse) -> web.Response:
    headers = _end_to_end(answer.headers)
    headers.popall("Content-Length", None)
    return web.Response(status=answer.status, headers=headers, body=await answer.read())


async def _stream(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Streams an answer to the caller. If either side disconnects midway, the other is disconnected too."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers))
    try:
        await response.prepare(request)
        async for part in answer.content.iter_any():
            await response.write(part)
        await response.write_eof()
    except _TROUBLE as error:
        logger.warning("%s %s broke off: %r", request.method, request.path, error)
        if request.transport is not None:
            request.transport.abort()
    return response
