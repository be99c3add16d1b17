"""The run browser: serves the viewer's page and the runs below a folder, by default on loopback only.

    GET  /            the page, like a static one but without data
    GET  /api/runs    the runs, and whether rollouts can be forked
    GET  /api/index   the rows and tokens of a run that are new to the page, read from its current files
    GET  /api/chunk   the records of consecutive rows
    POST /api/fork    forks a rollout with the engine; writes nothing to disk

Requests use the names of known runs, never paths. Pages of other sites can neither read answers nor fork: every request
must name this host, and a fork needs a token that only our own page can read.
"""

import asyncio
import functools
import hmac
import ipaddress
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from evaluation.fork_engine import ForkEngine
from evaluation.live_run import LiveRun, Rewritten
from evaluation.page_data import pack
from evaluation.page_parts import POLICY, page
from evaluation.records import tokenizer_of
from evaluation.run_list import find_runs
from evaluation.terminal import short, typed
from search_rollout.engine.sglang_reply import EngineError

READ_S = 0.5  # maximum per request for rows; the page asks again for the rest
RUNS_KEPT = 8  # in memory
MAX_FORK_BYTES = 2_000_000
NO_TOKENIZER = "start the viewer with --tokenizer, its folder."
TOKEN_HEADER = "X-Viewer-Token"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass
class Browser:
    """The runs below one folder and their data read so far. `load` loads a tokenizer from its folder."""

    root: Path
    load: Callable[[Path], Any]
    tokenizer: Path | None = None  # of runs that do not name theirs
    engine: ForkEngine | None = None
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        self._token = secrets.token_urlsafe()
        self._load = functools.cache(self.load)
        self._live_run = functools.lru_cache(RUNS_KEPT)(self._read_run)
        self._opening = asyncio.Lock()

    def app(self, hosts: set[str] | None) -> web.Application:
        """The server application. `hosts` are the accepted host names; None accepts any."""
        app = web.Application(client_max_size=MAX_FORK_BYTES, middlewares=[_guard(hosts)])
        app.add_routes([web.get("/", self._page), web.get("/api/runs", self._runs), web.get("/api/index", self._index)])
        app.add_routes([web.get("/api/chunk", self._chunk), web.post("/api/fork", self._fork)])
        return app

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=page(POLICY), content_type="text/html")

    async def _runs(self, request: web.Request) -> web.Response:
        runs = await asyncio.to_thread(lambda: [run.facts() for run in find_runs(self.root).values()])
        runs.sort(key=lambda run: -run["updated"])
        fork = {"ready": self.engine is not None, "token": self._token, "how": self._how_to_fork()}
        return web.json_response({"folder": short(self.root), "runs": runs, "fork": fork})

    async def _index(self, request: web.Request) -> web.Response:
        generation, rows, tokens = (_number(request, name) for name in ("generation", "rows", "tokens"))
        run = await self._open(request.query.get("run", ""))
        return _packed(await asyncio.to_thread(run.index, generation, rows, tokens, budget_s=READ_S))

    async def _chunk(self, request: web.Request) -> web.Response:
        generation, number = _number(request, "generation"), _number(request, "number")
        run = await self._open(request.query.get("run", ""))
        return _packed(await asyncio.to_thread(run.chunk, generation, number))

    async def _fork(self, request: web.Request) -> web.Response:
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            raise web.HTTPForbidden(text="Only the viewer's own page may fork; reload it.")
        if self.engine is None:
            raise web.HTTPConflict(text=self._how_to_fork())
        try:
            asked = await request.json()
            name, generation, row = str(asked["run"]), int(asked["generation"]), int(asked["row"])
        except (ValueError, KeyError, TypeError):
            raise web.HTTPBadRequest(text="The request to fork is malformed.") from None
        live = await self._open(name)
        fields = await asyncio.to_thread(live.fields, generation, row)
        forked = await self.engine.fork(live.run, live.tokenizer, fields, asked)
        return _packed(pack(await asyncio.to_thread(live.show, forked)))

    async def _open(self, name: str) -> LiveRun:
        """The data of a run; requests for a run that is not in memory wait for each other."""
        async with self._opening:
            return await asyncio.to_thread(self._live_run, name)

    def _read_run(self, name: str) -> LiveRun:
        run = find_runs(self.root).get(name)
        if run is None:
            raise web.HTTPNotFound(text=f"There is no run of this name in {short(self.root)}.")
        folder = tokenizer_of(run.folder) or self.tokenizer
        if folder is None:
            raise ValueError(f"{name} does not say which model was rolled out: {NO_TOKENIZER}")
        return LiveRun(run, self._load(folder), self.trust_pickle)

    def _how_to_fork(self) -> str:
        """What to start so that rollouts can be forked."""
        again = typed("view", "--serve", self.root, "--engine", "URL", "--search", "local:URL")
        return (
            "To continue from here, the viewer needs an engine that serves the model. For a demo run, "
            f"`{typed('serve', 'RUN')}` starts one and prints two URLs. Then start the viewer again:\n{again}"
        )


def _guard(hosts: set[str] | None) -> Any:
    """Rejects requests for another host name (against DNS rebinding), explains errors, and adds HEADERS."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if hosts is not None and request.host not in hosts:
                raise web.HTTPForbidden(text="This server answers only requests to its own address.")
            if request.headers.get("Origin") not in (None, f"{request.scheme}://{request.host}"):
                raise web.HTTPForbidden(text="This server answers only its own pages.")
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=error.text)
        except Rewritten:
            response = web.Response(status=410, text="These trajectories were written again; reload the page.")
        except (ValueError, EngineError) as error:
            response = web.Response(status=422, text=str(error))
        response.headers.update(HEADERS)
        return response

    return guard


def _packed(data: bytes) -> web.Response:
    return web.Response(body=data, content_type="application/json", headers={"Content-Encoding": "deflate"})


def _number(request: web.Request, name: str) -> int:
    try:
        return int(request.query.get(name, "0"))
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} is not a number.") from None


def serve(browser: Browser, host: str, port: int) -> None:
    """Listens until interrupted. Raises OSError if it cannot listen there."""
    with socket.create_server((host, port)) as listening:
        port = listening.getsockname()[1]
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        hosts = {f"{name}:{port}" for name in (host, "127.0.0.1", "localhost")} if is_local else None
        print(f"http://{host}:{port}/  shows the runs; Ctrl-C stops", flush=True)
        if not is_local:
            print("warning: anyone who can reach this address can read the runs", file=sys.stderr, flush=True)
        web.run_app(browser.app(hosts), sock=listening, access_log=None, shutdown_timeout=1.0, print=None)
