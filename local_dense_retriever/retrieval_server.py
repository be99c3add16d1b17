"""The retriever as an HTTP server: POST /retrieve, GET /health, and /docs.

    python local_dense_retriever/retrieval_server.py --index_path e5_Flat.index --corpus_path wiki.jsonl

The port is taken first, so that a port in use is noticed at once; it starts to listen when index and model are loaded.
A server that answers is therefore a server that is ready.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.errors import InputError
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.retriever import Hit, Retriever

MAX_TOPK = 100
MAX_QUERIES = 512  # of one request
MAX_QUERY_CHARACTERS = 10_000
LISTEN_BACKLOG = 2048  # connections waiting to be accepted; a rollout opens hundreds at once


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    try:
        serve(args)
    except (InputError, OSError) as error:  # OSError: a file without read permission, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a FAISS index and its corpus over HTTP.")
    add_index_arguments(parser)
    parser.add_argument("--topk", type=int, default=3, help="passages per query if a request names none (default: 3)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port (default: 8000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 serves other machines too, without a password (default: 127.0.0.1)"
    )
    return parser.parse_args(argv)


def serve(args: argparse.Namespace) -> None:
    """Loads everything, then serves until SIGINT or SIGTERM; raises InputError if something cannot be used."""
    if not 1 <= args.topk <= MAX_TOPK:
        raise InputError(f"--topk is {args.topk}; it must be between 1 and {MAX_TOPK}")
    if not 0 <= args.port <= 65535:
        raise InputError(f"--port is {args.port}; it must be between 0 and 65535")
    with take_port(args.host, args.port) as listener:
        retriever = load_retriever(args, lambda what: print(f"loading {what}", flush=True))
        app = create_app(retriever, args.topk)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: see _bind
        listener.listen(LISTEN_BACKLOG)
        host, port = listener.getsockname()[:2]
        print(f"ready: {len(retriever)} passages at http://{host}:{port}/retrieve (try /docs)", flush=True)
        config = uvicorn.Config(app, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


def take_port(host: str, port: int) -> socket.socket:
    """A socket bound to the address but not listening yet: whoever connects is refused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"cannot use --host {host} ({error}): give an address of this machine") from error
    try:
        _bind(listener, address)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot use port {port} of {host} ({error}): stop what is using it, or give another --port"
        ) from error
    return listener


def _bind(listener: socket.socket, address: tuple[Any, ...]) -> None:
    """Binds it, so that a second server cannot take the port too while this one is still loading.

    Linux shares a port among sockets that all have SO_REUSEADDR until one of them listens, so we set it late. But what
    holds the port may be only the closed connections of an old server, which last a minute; a second try with the
    option shares with those.
    """
    try:
        listener.bind(address)
    except OSError:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)


def _not_blank(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is blank")
    return query


Query = Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS), AfterValidator(_not_blank)]


class RetrieveRequest(BaseModel):
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    topk: int | None = Field(default=None, ge=1, le=MAX_TOPK, description="passages per query; null: the server's own")
    return_scores: bool = False


def create_app(retriever: Retriever, default_topk: int = 3) -> FastAPI:
    """The server's routes around a retriever that is loaded already."""
    app = FastAPI(title="local dense retriever")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    # Not `async`: FastAPI then runs it in a thread, and the event loop stays free while it encodes and searches.
    @app.post("/retrieve")
    def retrieve(request: RetrieveRequest) -> JSONResponse:
        """For each query its nearest passages, best first.

        Without scores `{"result": [[{"id", "contents"}, …], …]}`,
        with scores `{"result": [[{"document": {"id", "contents"}, "score"}, …], …]}`.
        """
        found = retriever.search(request.queries, request.topk or default_topk)
        return JSONResponse({"result": [[_to_json(hit, request.return_scores) for hit in hits] for hits in found]})

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        # As FastAPI's own, but without repeating the input: it may be long, or no valid Unicode.
        problems = [{key: problem[key] for key in ("loc", "msg", "type")} for problem in error.errors()]
        return JSONResponse({"detail": problems}, status_code=422)

    return app


def _to_json(hit: Hit, with_score: bool) -> dict[str, Any]:
    document = hit.passage._asdict()
    return {"document": document, "score": hit.score} if with_score else document


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does, also while loading
    sys.exit(main())
