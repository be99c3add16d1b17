"""Requests that schemathesis makes from a description of a server, sent to a server in a thread of its own."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

ANYTHING: dict[str, Any] = {}  # JSON Schema's "any value"


@contextlib.contextmanager
def in_thread(server: Callable[[], contextlib.AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """The URL of a server whose event loop runs in a thread."""
    ready, urls = threading.Event(), []

    async def serve() -> None:
        stop = asyncio.Event()
        async with server() as url:
            urls.extend([url, asyncio.get_running_loop(), stop])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    url, loop, stop = urls
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def statuses(url: str, method: str, path: str, body: dict[str, Any], count: int) -> Counter[int]:
    """How often each status came to `count` requests, made from the JSON Schema of a body and from its opposite."""
    operation = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}, "responses": {}}
    document = {"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": {path: {method: operation}}}
    schema = schemathesis.openapi.from_dict(document)
    seen: Counter[int] = Counter()
    headers = strange_headers()
    with httpx.Client(trust_env=False) as session:
        for mode, share in ((schemathesis.GenerationMode.POSITIVE, 2), (schemathesis.GenerationMode.NEGATIVE, 2)):

            @given(case=schema[path][method].as_strategy(generation_mode=mode))
            @settings(
                max_examples=count // share,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def answered(case: schemathesis.Case) -> None:
                reply = session.request(method, url + path, content=_encoded(case.body), headers=next(headers))
                assert reply.status_code < 500, (case.body, reply.text)
                seen[reply.status_code] += 1

            answered()
    return seen


def _encoded(body: Any) -> bytes:
    """JSON, or bytes where schemathesis means something else."""
    return body if isinstance(body, bytes) else json.dumps(body, default=repr).encode()


def strange_headers() -> Iterator[dict[str, str]]:
    """Headers that strangers send, in turns."""
    while True:
        yield {}
        yield {"X-Search-R1-Trajectory": "t", "Authorization": "bearer x"}
        yield {"Content-Encoding": "gzip", "Connection": "close"}
        yield {"Content-Type": "text/plain"}
