"""The router's HTTP application: its routes, the list of workers, and the relay for every other request."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from search_rollout.protocols.tool_formats import ToolFormat
from token_router.chat import ChatRoute
from token_router.errors import ApiError, bad_request, errors_as_json, json_object
from token_router.generate import GenerateRoute
from token_router.retrieve import RetrieveRoutes
from token_router.token_trie import TokenTrie
from token_router.upstream import Upstream
from token_router.workers import Workers

PROBE_PAUSE_S = 5.0  # between two health checks of a failed worker
SHUTDOWN_TIMEOUT_S = 1.0  # for requests in flight


def create_app(
    tokenizer: Any,
    workers: Workers,
    store: TokenTrie,
    *,
    tool_format: ToolFormat | None,
    max_body_bytes: int,
    probe_pause_s: float = PROBE_PAUSE_S,
) -> web.Application:
    """The application; `make_runner` runs it. Without a tool format, chat requests with tools are refused."""
    upstream = Upstream(workers, probe_pause_s=probe_pause_s)
    app = web.Application(middlewares=[errors_as_json], client_max_size=max_body_bytes)
    app.cleanup_ctx.append(upstream.connections)
    retrieve = RetrieveRoutes(tokenizer, store)
    routes = WorkerRoutes(workers, store)
    app.add_routes(
        [
            web.post("/generate", GenerateRoute(tokenizer, store, upstream).generate),
            web.post("/v1/chat/completions", ChatRoute(tokenizer, store, upstream, tool_format).complete),
            web.post("/retrieve_from_text", retrieve.from_text),
            web.post("/retrieve_from_messages_template", retrieve.from_messages),
            web.get("/health", routes.health),
            web.post("/workers", routes.add),
            web.get("/workers", routes.list),
            web.delete("/workers/{id:.+}", routes.remove),
            web.post("/add_worker", routes.add),
            web.post("/remove_worker", routes.remove),
            web.get("/list_workers", routes.list_urls),
            web.route("*", "/{path:.*}", upstream.relay),  # last: it matches everything
        ]
    )
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """A runner that cancels a generation when its caller hangs up, and passes on bodies still compressed."""
    return web.AppRunner(app, handler_cancellation=True, auto_decompress=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)


@dataclass(frozen=True)
class WorkerRoutes:
    """How engines register and leave: slime now uses `/workers`; in 2025 it used the other routes."""

    workers: Workers
    store: TokenTrie

    async def health(self, _: web.Request) -> web.Response:
        """GET /health: 503 while every worker is known to be dead, or none is registered."""
        healthy = sum(worker.is_healthy for worker in self.workers)
        body = {
            "status": "ok" if healthy else "no healthy worker",
            "workers": len(self.workers),
            "healthy_workers": healthy,
            "stored_tokens": self.store.tokens,
            "trajectories": self.store.trajectories,
        }
        return web.json_response(body, status=200 if healthy else 503)

    async def add(self, request: web.Request) -> web.Response:
        """The URL, and perhaps a worker_type, as a JSON object or in the query."""
        given = request.query or await json_object(request)
        try:
            worker = self.workers.add(str(given.get("url")), str(given.get("worker_type") or "regular"))
        except ValueError as error:
            raise bad_request(str(error), "bad_url") from error
        return web.json_response({"status": "success", **worker.as_json()})

    async def list(self, _: web.Request) -> web.Response:
        return web.json_response({"workers": [worker.as_json() for worker in self.workers]})

    async def list_urls(self, _: web.Request) -> web.Response:
        return web.json_response({"urls": [worker.url for worker in self.workers]})

    async def remove(self, request: web.Request) -> web.Response:
        id_or_url = request.match_info.get("id") or request.query.get("url", "")
        if not self.workers.remove(id_or_url):
            raise ApiError(404, "no_such_worker", f"There is no worker {id_or_url!r}.")
        return web.json_response({"status": "success"})
