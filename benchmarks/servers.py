"""Processes that benchmarks measure against; each ends with its `with` block."""

import asyncio
import multiprocessing
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.reporting import ROOT
from evaluation.server_process import ServerProcess, free_port

START_S = 120.0


@contextmanager
def apart(function: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """Runs function(*args, pipe) in a process of its own. Yields our end of the pipe."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=function, args=(*args, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


@contextmanager
def program(name: str, *command: str | Path, ready: str = "/health") -> Iterator[ServerProcess]:
    """One of the project's servers, `python COMMAND --port …`, once it is ready."""
    port = free_port()
    words = [sys.executable, *map(str, command), "--port", str(port)]
    with tempfile.NamedTemporaryFile() as log:
        with ServerProcess(name, words, port, Path(log.name), START_S, ready=ready, cwd=ROOT) as server:
            yield server


def serve(
    routes: dict[str, Callable[[web.Request], Awaitable[web.Response]]],
    pipe: Connection,
    answer: Callable[[], object] = lambda: None,
) -> None:
    """Serves POST routes on loopback. Sends the port; then sends `answer()` whenever anything is received."""

    async def main() -> None:
        app = web.Application(client_max_size=2**28)
        app.add_routes([web.post(path, handler) for path, handler in routes.items()])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        pipe.send(runner.addresses[0][1])
        while True:
            await asyncio.to_thread(pipe.recv)
            pipe.send(answer())

    asyncio.run(main())


def engine_reply(text: str, ids: list[int], prompt_tokens: int) -> web.Response:
    """What SGLang's /generate answers when it sampled these ids."""
    meta = {
        "finish_reason": {"type": "stop", "matched": "</search>"},
        "prompt_tokens": prompt_tokens,
        "output_token_logprobs": [[-0.5, token, None] for token in ids],
    }
    return web.json_response({"text": text, "output_ids": ids, "meta_info": meta})
