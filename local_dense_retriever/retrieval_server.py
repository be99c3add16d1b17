"""The retriever as an HTTP server: POST /retrieve, GET /health, /ready, /metrics, and /docs.

    python local_dense_retriever/retrieval_server.py --index_path e5_Flat.index --corpus_path wiki.jsonl

It listens immediately and loads in the background; until it is done, /ready and /docs answer 503 with what is being
loaded. On SIGTERM or Ctrl-C it answers the queued queries, then stops.
"""

import argparse
import asyncio
import ipaddress
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import uvicorn

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.app import MAX_QUERIES, MAX_TOPK, create_app
from local_dense_retriever.batcher import Limits
from local_dense_retriever.errors import InputError
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.service import Service

API_KEY_VARIABLE = "RETRIEVAL_API_KEY"
LISTEN_BACKLOG = 2048  # connections waiting to be accepted; a rollout opens hundreds at once
KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that we never close one in use
MAX_HEAD_BYTES = 64 << 10  # request line and headers
STOP_TIMEOUT_S = 30  # to answer the queued queries

FLAGS = (  # name, default, smallest and largest value, help
    ("topk", 3, 1, MAX_TOPK, "passages per query, unless the request says otherwise"),
    ("max_batch", Limits.max_batch, 1, 4096, "distinct queries searched at once"),
    ("batch_window_ms", 1000 * Limits.window_s, 0, 1000, "how long a query waits for others while the server is idle"),
    # A request must fit into the queue.
    ("max_queue", Limits.max_queue, MAX_QUERIES, 10**6, "maximum distinct queries waiting; further requests get 503"),
    ("cache_size", Limits.cache_size, 0, 10**8, "queries to cache, about 3 kB each at topk 3; 0 disables the cache"),
    ("port", 8000, 0, 65535, "port to listen on; 0 picks a free one"),
)


def run() -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # does not wait for the loading or searching thread, which may take minutes


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        for name, _, least, most, _ in FLAGS:
            if not least <= (value := getattr(args, name)) <= most:
                raise InputError(f"--{name} is {value}; it must be between {least} and {most}")
        with take_port(args.host, args.port) as listener:
            asyncio.run(serve(args, listener))
    except (InputError, OSError) as error:  # OSError: a file without read permission, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve an index and its corpus over HTTP.",
        epilog=f"If {API_KEY_VARIABLE} is set, /retrieve requires that key as a bearer token.",
    )
    add_index_arguments(parser)
    for name, default, _, _, text in FLAGS:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
    host = "address to listen on; 0.0.0.0 serves other machines too (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    return parser.parse_args(argv)


def take_port(host: str, port: int) -> socket.socket:
    """A listening socket; early connections wait in its backlog. Raises InputError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(f"cannot use --host {host} ({error}): give an address of this machine") from error
    try:
        listener = socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG)
    except OSError as error:
        raise InputError(
            f"cannot use port {port} of {host} ({error}): stop what is using it, or give another --port"
        ) from error
    # Connections inherit it. asyncio does not set it on sockets made like this, and without it a reply takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def serve(args: argparse.Namespace, listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM, loading in the background; raises what loading raises."""
    service = Service(Limits(args.batch_window_ms / 1000, args.max_batch, args.max_queue, args.cache_size))
    api_key = read_api_key()
    server = _Server(
        service,
        uvicorn.Config(
            create_app(service, args.topk, api_key),
            http=http_protocol(),
            lifespan="off",
            log_level="warning",
            access_log=False,  # a line for each request is slow; /metrics counts them
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        ),
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"listening at {url}; {url}/ready answers 200 once everything is loaded", flush=True)
    if api_key is None and not ipaddress.ip_address(host).is_loopback:
        warning = f"warning: anyone who can reach {url} can use it; set {API_KEY_VARIABLE} to require a key"
        print(warning, file=sys.stderr)

    async def load() -> None:
        try:
            await service.load(partial(load_retriever, args))
        except BaseException:
            server.should_exit = True
            raise
        print(f"ready: {service.about['rows']} passages at {url}/retrieve (try {url}/docs)", flush=True)
        print("Application startup complete.", flush=True)  # uvicorn's line, which it would log before loading

    loading = asyncio.create_task(load())
    try:
        await server.serve(sockets=[listener])
    finally:
        service.close()
    if loading.done():
        await loading


def read_api_key() -> str | None:
    """The required key; None if none is set. Raises InputError, without the value, if no client could send it."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()  # a key read from a file ends in a newline
    if not key.isprintable():
        raise InputError(f"{API_KEY_VARIABLE} holds a control character, which no client can send: set it again")
    return key or None


def http_protocol() -> Any:
    """uvicorn's HTTP protocol with a bound on a request's head: h11 has one, httptools collects headers of any size."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedProtocol(HttpToolsProtocol):
        _head_bytes: int | None = None  # of a request whose headers have not ended yet

        def on_message_begin(self) -> None:
            self._head_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head_bytes is not None and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.send_400_response("The request's headers are too large.")

    return BoundedProtocol


class _Server(uvicorn.Server):
    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop_uploads()
        await super().shutdown(sockets)


if __name__ == "__main__":
    run()
