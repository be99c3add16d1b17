"""Web search through the Google results API of serper.dev: `GoogleSearch`, the client that a rollout uses.

Run as a script it is a server with the `/retrieve` of the local retriever, so that several trainers share one key:

    GOOGLE_API_KEY=... python google_search_server.py --port 8000
    SEARCH_BACKEND=local RETRIEVAL_SERVER_URL=http://that-machine:8000      for the trainers
"""

import argparse
import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from yarl import URL

from search_rollout.config import PLACEHOLDER_KEY, ConfigError
from search_rollout.google_results import Hit, contents, passage, read_answer
from search_rollout.http_client import JsonClient, RequestFailed, ServiceRefused
from search_rollout.retrieval import Passage
from search_rollout.web_pages import WebPages

ENDPOINT = "https://google.serper.dev/search"
PAUSE_S = 0.5  # before the first repeat of a call
RESULTS_FOR_ONE_CREDIT = 10  # asked for in any case: some have no text
MAX_QUERY_CHARACTERS = 2048  # of which the API takes notice

MAX_TOPK = 100  # these three as the local retriever has them
MAX_QUERIES = 512
MAX_REQUEST_QUERY_CHARACTERS = 10_000
LISTEN_BACKLOG = 2048  # connections waiting to be accepted; a rollout opens hundreds at once

_CREDITS_GONE = re.compile(r"(?:not enough|insufficient|no more|run out of|used up).{0,20}(?:credit|quota)", re.I)


class GoogleSearch:
    """A source of passages; belongs to one event loop.

    Passages are the answer box, the knowledge graph, and the organic results, in this order: their snippets, or with
    `pages` the part of each organic result's page that the snippet is from. `gl` and `hl` are Google's country and
    language. `timeout_s` bounds each try of a call. Raises ConfigError on a bad argument.
    """

    def __init__(
        self,
        api_key: str,
        *,
        endpoint: str = ENDPOINT,
        topk: int = 3,
        gl: str = "us",
        hl: str = "en",
        pages: WebPages | None = None,
        timeout_s: float = 20.0,
        retries: int = 3,
    ) -> None:
        self._key = _checked_key(api_key)
        self._endpoint = _checked_endpoint(endpoint)
        self._client = JsonClient(
            self._endpoint, timeout_s=timeout_s, retries=retries, pause_s=PAUSE_S, secret=self._key
        )
        self._topk = topk
        self._locale = {name: value for name, value in (("gl", gl), ("hl", hl)) if value}
        self._pages = pages

    @property
    def namespace(self) -> str:
        """What a query's answer depends on besides the query."""
        locale = " ".join(f"{name}={value}" for name, value in self._locale.items())
        return f"google {self._endpoint} topk={self._topk} {locale} {'pages' if self._pages else 'snippets'}"

    async def find(self, query: str, topk: int | None = None) -> list[Passage]:
        """At most `topk` passages, best first.

        Raises RequestFailed; ServiceRefused for a wrong key, and for credits that are used up.
        """
        topk = topk or self._topk
        body = {"q": query[:MAX_QUERY_CHARACTERS], "num": max(topk, RESULTS_FOR_ONE_CREDIT), **self._locale}
        hits = read_answer(await self._ask(body))
        hits = [hit for hit in hits if hit.passage.text or (self._pages and hit.link)][:topk]
        if self._pages:
            hits = await asyncio.gather(*(self._whole(self._pages, hit, query) for hit in hits))
        return [hit.passage for hit in hits if hit.passage.text]

    async def close(self) -> None:
        """Releases the connections, and those of the pages."""
        await self._client.close()
        if self._pages:
            await self._pages.close()

    async def _ask(self, body: dict[str, Any]) -> Any:
        try:
            return await self._client.post("", body, {"X-API-KEY": self._key})
        except RequestFailed as failure:
            remedy = _remedy(failure)
            if remedy is None:
                raise
            refused = ServiceRefused(f"{remedy} ({failure})")
            refused.status = failure.status
        raise refused

    async def _whole(self, pages: WebPages, hit: Hit, query: str) -> Hit:
        """The hit with its page's passage, if there is one."""
        text = await pages.passage(hit.link, hit.passage.text or query) if hit.link else None
        return Hit(passage(hit.passage.title, text)) if text else hit


def _checked_key(api_key: str) -> str:
    key = api_key.strip()
    if key in ("", PLACEHOLDER_KEY):
        raise ConfigError("Web search needs a key: set GOOGLE_API_KEY, from serper.dev.")
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(
            "GOOGLE_API_KEY has characters that no key has, such as spaces: copy it from serper.dev again."
        )
    return key


def _checked_endpoint(endpoint: str) -> str:
    url = URL(endpoint)
    if url.scheme not in ("http", "https") or not url.host or url.user or url.query_string:
        raise ConfigError(
            "The endpoint of web search must be an http or https URL, without a query: keys go elsewhere."
        )
    return endpoint


def _remedy(failure: RequestFailed) -> str | None:
    """What a person has to do before the API answers again; None if nothing."""
    if failure.status in (401, 403):
        return "The search API does not accept the key: set GOOGLE_API_KEY to a valid one of serper.dev."
    if failure.status == 402 or (failure.status == 400 and _CREDITS_GONE.search(str(failure))):
        return "The search API's credits are used up: buy more at serper.dev, or set SEARCH_BACKEND=local."
    return None


# The server.


class BadRequest(Exception):
    """A request that /retrieve does not understand; the message says why."""


def create_app(search: GoogleSearch, *, topk: int, concurrency: int) -> web.Application:
    """`/retrieve` and `/health` in front of `search`, which is closed with the app.

    `topk` where a request names none; at most `concurrency` searches at once.
    """
    places = asyncio.Semaphore(concurrency)

    async def find(query: str, most: int) -> list[Passage]:
        async with places:
            return await search.find(query, most)

    async def retrieve(request: web.Request) -> web.Response:
        try:
            queries, most, with_scores = _read_request(await request.text(), topk)
        except BadRequest as error:
            return web.json_response({"detail": str(error)}, status=422)
        found = await asyncio.gather(*(find(query, most) for query in queries), return_exceptions=True)
        results = []
        for passages in found:
            if isinstance(passages, RequestFailed):
                status = 403 if isinstance(passages, ServiceRefused) else 503  # 403: no use to try again
                return web.json_response({"detail": str(passages)}, status=status)
            if isinstance(passages, BaseException):
                raise passages
            results.append([_to_json(place, passage, with_scores) for place, passage in enumerate(passages)])
        return web.json_response({"result": results})

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def close(app: web.Application) -> None:
        await search.close()

    app = web.Application()
    app.add_routes([web.post("/retrieve", retrieve), web.get("/health", health)])
    app.on_cleanup.append(close)
    return app


def _read_request(text: str, topk: int) -> tuple[Sequence[str], int, bool]:
    """Queries, topk, and whether scores are wanted. Raises BadRequest."""
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON") from None
    if not isinstance(request, dict):
        raise BadRequest("the request is not an object")
    queries, most, with_scores = request.get("queries"), request.get("topk"), request.get("return_scores", False)
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
        raise BadRequest(f"queries must be a list of 1 to {MAX_QUERIES} strings")
    for query in queries:
        if not isinstance(query, str) or not query.strip() or len(query) > MAX_REQUEST_QUERY_CHARACTERS:
            raise BadRequest(
                f"a query must be a string, not blank, of at most {MAX_REQUEST_QUERY_CHARACTERS} characters"
            )
    if most is not None and (type(most) is not int or not 1 <= most <= MAX_TOPK):
        raise BadRequest(f"topk must be null or a whole number from 1 to {MAX_TOPK}")
    if not isinstance(with_scores, bool):
        raise BadRequest("return_scores must be true or false")
    return queries, most or topk, with_scores


def _to_json(place: int, found: Passage, with_score: bool) -> dict[str, Any]:
    document = {"id": str(place), "contents": contents(found.title, found.text)}
    return {"document": document, "score": 1 / (place + 1)} if with_score else document  # Google tells the order only


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    try:
        search = GoogleSearch(
            os.environ.get("GOOGLE_API_KEY", ""),
            endpoint=args.endpoint,
            topk=args.topk,
            gl=args.gl,
            hl=args.hl,
            pages=WebPages() if args.full_pages else None,
        )
        listener = socket.create_server((args.host, args.port), backlog=LISTEN_BACKLOG)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: cannot use port {args.port} of {args.host} ({error}): stop what uses it, or give another --port",
            file=sys.stderr,
        )
        return 1
    host, port = listener.getsockname()[:2]
    print(f"ready: web search at http://{host}:{port}/retrieve", flush=True)
    app = create_app(search, topk=args.topk, concurrency=args.concurrency)
    web.run_app(app, sock=listener, print=None, access_log=None)  # until SIGINT or SIGTERM
    print("stopped", file=sys.stderr)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line's arguments; exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        description="Serve Google results over the local retriever's /retrieve. "
        "The key of serper.dev stands in the environment variable GOOGLE_API_KEY."
    )
    parser.add_argument("--port", type=_number(0, 65535), default=8000, help="0 takes any free port (default: 8000)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 serves other machines too, without a password: who reaches it spends your credits "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--topk", type=_number(1, MAX_TOPK), default=3, help="passages per query if a request names none (default: 3)"
    )
    parser.add_argument("--gl", default="us", help="country of the results (default: %(default)s)")
    parser.add_argument("--hl", default="en", help="language of the results (default: %(default)s)")
    parser.add_argument(
        "--full-pages",
        action="store_true",
        help="read the pages of the results, not the snippets only; needs the package trafilatura",
    )
    parser.add_argument(
        "--concurrency", type=_number(1, 10_000), default=64, help="searches at once (default: %(default)s)"
    )
    parser.add_argument("--endpoint", default=ENDPOINT, help="of the results API (default: %(default)s)")
    return parser.parse_args(argv)


def _number(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number in these bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
