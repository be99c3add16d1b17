"""Stand-ins for the web, real HTTP servers on loopback: the Google results API, and hosts of pages.

They model what serper.dev documents and its users report: POST with X-API-KEY and {"q", "num", "gl", "hl"}; `organic`
results with title, link, snippet, position, any of which may be missing; `answerBox`; `knowledgeGraph`; errors as
{"message", "statusCode"}. No test of this repository can reach the real API by itself: tests/contracts/test_google.py
asks it the same as the stand-in where SERPER_API_KEY is set.
"""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from fakes import LoopbackHost

KEY = "k3y-that-must-not-leak"
NAIROBI: dict[str, Any] = {
    "searchParameters": {"q": "capital of Kenya", "type": "search"},
    "answerBox": {"title": "Kenya / Capital", "answer": "Nairobi", "snippet": "The capital of Kenya is Nairobi."},
    "knowledgeGraph": {
        "title": "Nairobi",
        "type": "Capital of Kenya",
        "description": "Nairobi is a city on the Athi plains.",
        "attributes": {"Area": "696 km²", "Founded": 1899},
    },
    "organic": [
        {"title": "Nairobi - Wikipedia", "link": "https://x.test/n", "snippet": "Nairobi has parks.", "position": 1},
        {"title": "Kenya", "link": "https://x.test/k", "snippet": "A country.", "position": 2},
    ],
}

Answer = web.StreamResponse | float | None
Trouble = Callable[[int, web.Request], Answer | Awaitable[Answer]]


def json_error(status: int, message: str, **headers: str) -> web.Response:
    """An error as the API words it."""
    return web.json_response(
        {"message": message, "statusCode": status},
        status=status,
        headers={name.replace("_", "-"): text for name, text in headers.items()},
    )


def no_credits() -> web.Response:
    return json_error(400, "Not enough credits")


def cut(request: web.Request) -> web.Response:
    """Ends the connection without an answer."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


class _Host(LoopbackHost):
    """Answers every path by `_answer`."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


class FakeGoogle(_Host):
    """The results API. `trouble(n, request)`, n from 0, may give another answer, or seconds to wait for the usual."""

    def __init__(self, results: dict[str, Any] | None = None, trouble: Trouble | None = None, key: str = KEY) -> None:
        self.results = NAIROBI if results is None else results
        self.trouble = trouble
        self.key = key
        self.requests: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/search"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        answer = self.trouble(len(self.requests) - 1, request) if self.trouble else None
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        elif answer is not None:
            return answer
        if request.headers.get("X-API-KEY") != self.key:
            return json_error(403, "Unauthorized.")
        if not body.get("q"):
            return json_error(400, "Missing query parameter")
        results = self.results.get("organic", [])[: body.get("num", 10)]
        return web.json_response(self.results | ({"organic": results} if results else {}))


@dataclass
class FakePage:
    """What a web host answers to one path."""

    body: bytes | str = b""
    type: str | None = "text/html"  # with its charset, if any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0  # before each of its parts
    parts: int = 1
    cut: bool = False  # in the middle of the body


class FakeWeb(_Host):
    """A web host: its pages by path."""

    def __init__(self, pages: dict[str, FakePage]) -> None:
        self.pages = pages
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        self.headers.append(dict(request.headers))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._send(request, self.pages.get(request.path, FakePage(status=404)))
        finally:
            self._now -= 1

    async def _send(self, request: web.Request, page: FakePage) -> web.StreamResponse:
        body = page.body.encode() if isinstance(page.body, str) else page.body
        headers = {name: text.replace("{port}", str(self.port)) for name, text in page.headers.items()}
        response = web.StreamResponse(status=page.status, headers=headers)
        if page.type is not None:
            response.headers["Content-Type"] = page.type
        response.content_length = len(body)
        await response.prepare(request)
        size = -(-len(body) // page.parts) or 1
        for start in range(0, len(body), size):
            if page.delay_s:
                await asyncio.sleep(page.delay_s)
            await response.write(body[start : start + size])
            if page.cut and request.transport is not None:
                request.transport.close()
        return response


def redirect(to: str, status: int = 302) -> FakePage:
    """`{port}` in `to` is the host's own."""
    return FakePage(status=status, headers={"Location": to})


def zip_bomb(megabytes: int) -> FakePage:
    """A page of so many megabytes of zeros, a thousandth of that on the wire."""
    return FakePage(gzip.compress(b"\0" * megabytes * 2**20), headers={"Content-Encoding": "gzip"})


def article(*paragraphs: str, charset: str | None = None) -> str:
    """An HTML page with a menu, a script and these paragraphs."""
    meta = f'<meta charset="{charset}">' if charset else ""
    text = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return (
        f"<!doctype html><html><head>{meta}<title>t</title><script>track('SCRIPT')</script></head>"
        f"<body><nav><a href='/'>MENU</a></nav><article>{text}</article><footer>FOOTER</footer></body></html>"
    )
