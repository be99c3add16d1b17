"""A token router: text or messages in, exact token ids stored and returned.

    python -m token_router --port 30000 --tokenizer MODEL_DIR --upstream http://127.0.0.1:30001

The router sits between a rollout and its SGLang workers. Later turns send a worker exactly the ids that were sampled;
/retrieve_from_text and /retrieve_from_messages_template return them with their mask and log-probabilities. The request
header X-Search-R1-Trajectory names the trajectory. Workers may also register themselves with POST /workers or
POST /add_worker?url=. Every other request is passed to a worker unchanged.
"""

import argparse
import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from search_rollout.arguments import whole_number
from search_rollout.protocols.tool_formats import FORMATS, ToolFormat, is_format, tool_format
from token_router.app import create_app, make_runner
from token_router.token_trie import PIECE_TOKENS, TokenTrie
from token_router.workers import Workers, worker_url

LISTEN_BACKLOG = 2048  # connections waiting to be accepted; a rollout opens hundreds at once
OPEN_FILES = 65536  # two per request in flight


class StartError(Exception):
    """The router cannot start; the message says what to change."""


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    try:
        with take_port(args.host, args.port) as listener:  # before the tokenizer is loaded, which takes seconds
            asyncio.run(serve(args, load_tokenizer(args.tokenizer), listener))
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the signal handlers were set
        pass
    print("stopped", file=sys.stderr)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m token_router", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--port", type=whole_number(0, 65535), required=True, help="port to listen on; 0 picks a free one")
    add("--tokenizer", type=Path, required=True, metavar="DIR", help="the model's folder")
    add("--upstream", type=_url, nargs="+", action="extend", default=[], metavar="URL", help="first workers")
    host = "0.0.0.0 serves other machines too; there is no password (default: %(default)s)"
    add("--host", default="127.0.0.1", help=host)
    calls = f"how the model writes tool calls: {', '.join(FORMATS)} or sglang:NAME (default: by its template)"
    add("--tool-call-format", type=_format_name, default="auto", metavar="NAME", help=calls)
    tokens = (
        "maximum tokens to keep, about 20 bytes each; beyond it the least recently used are dropped. Each turn counts "
        f"as {2 * PIECE_TOKENS} extra tokens (default: %(default)s)"
    )
    add("--max-tokens", type=whole_number(1, 10**12), default=20_000_000, metavar="N", help=tokens)
    body = "maximum request size; parsing a large one delays the others (default: %(default)s)"
    add("--max-body-mb", type=whole_number(1, 10**5), default=16, metavar="MB", help=body)
    add("--debug", action="store_true", help="log every request")
    return parser.parse_args(argv)


def _format_name(name: str) -> str:
    if not is_format(name):
        raise argparse.ArgumentTypeError(
            f"invalid choice: {name!r} (choose from auto, {', '.join(FORMATS)}, sglang:NAME)"
        )
    return name


def _url(text: str) -> str:
    try:
        return worker_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def take_port(host: str, port: int) -> socket.socket:
    """A listening socket; early connections wait in its backlog. Raises StartError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise StartError(f"cannot use --host {host} ({error}): set an address of this machine") from error
    try:
        return socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG)
    except OSError as error:
        raise StartError(
            f"cannot use port {port} of {host} ({error}): stop what uses it, or set another --port"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise StartError(f"there is no folder {folder}: --tokenizer takes the folder of a Hugging Face model")
    try:
        from transformers import AutoTokenizer  # slow to import, and --help does not need it

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many types
        raise StartError(f"no tokenizer can be loaded from {folder}: {' '.join(str(error).split())[:300]}") from error


def choose_tool_format(tokenizer: Any, name: str) -> ToolFormat | None:
    """The format of that name, or the one detected from the tokenizer's template; None if none is detected."""
    with contextlib.suppress(ValueError):
        return tool_format(tokenizer, name)
    return None


async def serve(args: argparse.Namespace, tokenizer: Any, listener: socket.socket) -> None:
    workers = Workers()
    for url in args.upstream:
        workers.add(url)
    app = create_app(
        tokenizer,
        workers,
        TokenTrie(args.max_tokens),
        tool_format=choose_tool_format(tokenizer, args.tool_call_format),
        max_body_bytes=args.max_body_mb * 2**20,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # on Linux never infinite
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    runner = make_runner(app)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=LISTEN_BACKLOG).start()
        host, port = listener.getsockname()[:2]
        print(f"token router: http://{host}:{port}, {len(workers)} workers", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
