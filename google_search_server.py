"""Web search through serper.dev, an API of Google's results: `GoogleSearch`, the client that rollouts use.

Run as a script it serves the local retriever's `/retrieve`, so that several trainers share one key:

    GOOGLE_API_KEY=... python google_search_server.py --port 8000
    SEARCH_BACKEND=local RETRIEVAL_SERVER_URL=http://that-machine:8000      for the trainers
"""

import argparse
import asyncio
import hmac
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from search_rollout.arguments import whole_number
from search_rollout.config import ConfigError, SearchConfig, load_config
from search_rollout.http_client import JsonClient, RequestFailed, ServiceRefused
from search_rollout.runtime import make_searcher
from search_rollout.search.google import Hit, contents, passage, read_answer
from search_rollout.search.passage import Passage
from search_rollout.search.searcher import Searcher
from search_rollout.search.web_pages import WebPages

RESULTS_FOR_ONE_CREDIT = 10  # always requested: some have no text

MAX_TOPK = 100
MAX_QUERIES = 512  # per request; this and the next limit are the local retriever's
MAX_SENT_CHARACTERS = 10_000  # per query
MAX_REQUEST_BYTES = 2**23  # 8 MiB: parsing a larger body would keep other requests waiting
SHUTDOWN_TIMEOUT_S = 2.0  # for requests under way
LISTEN_BACKLOG = 2048  # connections waiting to be accepted; a rollout opens hundreds at once

_CREDITS_GONE = re.compile(r"(?:not enough|insufficient|no more|run out of|used up).{0,20}(?:credit|quota)", re.I)


class GoogleSearch:
    """A `PassageSource`; belongs to one event loop.

    Passages are the answer box, the knowledge graph and the organic results, in this order: their snippets, or with
    `google_full_pages` the part of each organic result's page that contains the snippet. Nothing is retried;
    `search_timeout_s` bounds an API call. Raises ConfigError if packages for full pages are missing.
    """

    def __init__(self, config: SearchConfig, pages: WebPages | None = None) -> None:
        self._endpoint = config.google_endpoint
        self._key = config.google_api_key
        self._client = JsonClient(self._endpoint, timeout_s=config.search_timeout_s, retries=0, pause_s=0.0)
        self._topk = config.topk
        self._locale = {name: value for name, value in (("gl", config.google_gl), ("hl", config.google_hl)) if value}
        self._pages = pages or (WebPages() if config.google_full_pages else None)

    def __str__(self) -> str:
        return self._endpoint

    @property
    def namespace(self) -> str:
        """See `PassageSource`."""
        locale = " ".join(f"{name}={value}" for name, value in self._locale.items())
        return f"google {self._endpoint} topk={self._topk} {locale} {'pages' if self._pages else 'snippets'}"

    async def find(self, query: str) -> list[Passage]:
        """Returns at most `topk` passages, best first.

        Raises RequestFailed; ServiceRefused if the key is wrong or the credits are used up.
        """
        num = max(self._topk, RESULTS_FOR_ONE_CREDIT)
        hits = read_answer(await self._ask({"q": query, "num": num, **self._locale}))
        hits = [hit for hit in hits if hit.passage.text or (self._pages and hit.link)][: self._topk]
        if self._pages:
            hits = await asyncio.gather(*(_from_page(self._pages, hit, query) for hit in hits))
        return [hit.passage for hit in hits if hit.passage.text]

    async def close(self) -> None:
        """Closes the connections, including those for pages."""
        await self._client.close()
        if self._pages:
            await self._pages.close()

    async def _ask(self, body: dict[str, Any]) -> Any:
        try:
            return await self._client.post("", body, {"X-API-KEY": self._key})
        except RequestFailed as failure:
            if not (remedy := _remedy(failure)):
                raise
            refused = ServiceRefused(f"{remedy} ({failure})")
            refused.status = failure.status
            raise refused from None


async def _from_page(pages: WebPages, hit: Hit, query: str) -> Hit:
    """The hit, with its snippet replaced by a passage of its page if one is found."""
    text = await pages.passage(hit.link, hit.passage.text or query) if hit.link else None
    return Hit(passage(hit.passage.title, text)) if text else hit


def _remedy(failure: RequestFailed) -> str | None:
    """What a person must do before the API answers again; None if nothing."""
    if failure.status in (401, 403):
        return "The search API rejects the key: set GOOGLE_API_KEY to a valid one from serper.dev."
    if failure.status == 402 or (failure.status == 400 and _CREDITS_GONE.search(str(failure))):
        return "The search API's credits are used up: buy more at serper.dev, or set SEARCH_BACKEND=local."
    return None


# The server.


class BadRequest(Exception):
    """A request that /retrieve cannot serve; the message says why."""


def create_app(searcher: Searcher, *, topk: int, api_key: str = "") -> web.Application:
    """`/retrieve`, `/health` and `/usage` for `searcher`, which finds `topk` passages; the app closes it.

    With an `api_key`, everything but /health needs the header `Authorization: Bearer KEY`.
    """

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if api_key and request.path != "/health" and not _sends_key(request, api_key):
            return web.json_response({"detail": "this server's key is missing or wrong"}, status=401)
        return await handler(request)

    async def retrieve(request: web.Request) -> web.Response:
        try:
            queries, most, with_scores = _read_request(await request.read(), topk)
        except BadRequest as error:
            return web.json_response({"detail": str(error)}, status=422)
        except web.RequestPayloadError:
            return web.json_response({"detail": "the body is not what the headers say"}, status=400)
        results = await asyncio.gather(*map(searcher.search, queries))
        errors = [result.error for result in results if result.error]
        if errors:
            # 500 if only some failed: the rollouts' client then sends each query alone.
            status = 500 if len(errors) < len(results) else 502
            return web.json_response({"detail": errors[0]}, status=status)
        return web.json_response({"result": [_to_json(result.passages[:most], with_scores) for result in results]})

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def usage(request: web.Request) -> web.Response:
        return web.json_response(searcher.usage.snapshot())

    async def close(app: web.Application) -> None:
        await searcher.close()

    app = web.Application(middlewares=[check_key], client_max_size=MAX_REQUEST_BYTES)
    app.add_routes([web.post("/retrieve", retrieve), web.get("/health", health), web.get("/usage", usage)])
    app.on_cleanup.append(close)
    return app


def _sends_key(request: web.Request, api_key: str) -> bool:
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    sent_bytes = sent.strip().encode("utf-8", "surrogateescape")  # a header may hold any byte
    return scheme.lower() == "bearer" and hmac.compare_digest(sent_bytes, api_key.encode())


def _read_request(body: bytes, topk: int) -> tuple[list[str], int, bool]:
    """Returns the queries, the number of passages and whether to return scores. Raises BadRequest."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not JSON") from None
    if not isinstance(request, dict):
        raise BadRequest("the request is not an object")
    queries, most, with_scores = request.get("queries"), request.get("topk"), request.get("return_scores", False)
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
        raise BadRequest(f"queries must be a list of 1 to {MAX_QUERIES} strings")
    if not all(isinstance(query, str) and query.strip() and len(query) <= MAX_SENT_CHARACTERS for query in queries):
        raise BadRequest(f"a query must be a string of at most {MAX_SENT_CHARACTERS} characters, and not blank")
    if most is not None and (type(most) is not int or not 1 <= most <= topk):
        raise BadRequest(
            f"topk must be null or a whole number from 1 to {topk}; start this server with a larger --topk"
        )
    if not isinstance(with_scores, bool):
        raise BadRequest("return_scores must be true or false")
    return queries, most or topk, with_scores


def _to_json(passages: Sequence[Passage], with_scores: bool) -> list[dict[str, Any]]:
    documents = [
        {"id": str(rank), "contents": contents(one.title, one.text)} for rank, one in enumerate(passages, start=1)
    ]
    if not with_scores:
        return documents
    return [{"document": one, "score": 1 / int(one["id"])} for one in documents]  # Google gives only the order


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    try:
        config = load_config({}, os.environ, args)
        searcher = make_searcher(config, [GoogleSearch(config)])
        app = create_app(searcher, topk=config.topk, api_key=config.retrieval_api_key)
        listener = socket.create_server((args.host, args.port), backlog=LISTEN_BACKLOG)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "stop what uses it, or set another --port"
        print(f"error: cannot use port {args.port} of {args.host} ({error}): {remedy}", file=sys.stderr)
        return 1
    host, port = listener.getsockname()[:2]
    print(f"ready: web search at http://{host}:{port}/retrieve", flush=True)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    web.run_app(  # until SIGINT or SIGTERM
        app,
        sock=listener,
        print=None,
        access_log=None,
        handler_cancellation=True,  # a client that hangs up causes no further paid searches
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    print("stopped", file=sys.stderr)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line's arguments; exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        description="Serves Google results with the local retriever's /retrieve. The plugin's environment variables "
        "(docs/CONFIGURATION.md) set everything else: GOOGLE_API_KEY, SEARCH_CACHE, SEARCH_BUDGET, … With "
        "RETRIEVAL_API_KEY set, clients must send that key.",
    )
    parser.set_defaults(search_backend="google")
    parser.add_argument(
        "--port", type=whole_number(0, 65535), default=8000, help="0 takes any free port (default: 8000)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 serves other machines too; set RETRIEVAL_API_KEY, or strangers spend your credits "
        "(default: %(default)s)",
    )
    parser.add_argument("--topk", type=whole_number(1, MAX_TOPK), help="maximum passages per query (default: 3)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
