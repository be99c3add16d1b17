"""Quick checks of programs, servers, ports and folders, each with a time limit."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from preflight.findings import Mistake, one_line

TIMEOUT_S = 5.0

T = TypeVar("T")


def run(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float, remedy: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a program. Raises Mistake if it is missing or takes too long; the caller checks its exit status."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "errors": "surrogateescape"}
    try:
        return subprocess.run(command, env=environment, timeout=timeout_s, stdin=subprocess.DEVNULL, **settings)
    except FileNotFoundError as error:
        raise Mistake(f"there is no program {command[0]!r}", remedy) from error
    except subprocess.TimeoutExpired as error:
        raise Mistake(f"{command[0]} did not finish within {timeout_s:.0f} s", remedy) from error


class Answer(NamedTuple):
    """What a server answers to a GET: its status, and its body if that is JSON."""

    status: int
    body: Any = None


def get(base: str, path: str, remedy: str) -> Answer:
    """Raises Mistake if there is no answer."""
    return get_all([base], path, remedy)[0]


def get_all(bases: Sequence[str], path: str, remedy: str) -> list[Answer]:
    """Asks all servers at the same time. Raises Mistake if one does not answer."""
    import aiohttp  # imported late: machine checks without a server run without it

    async def get_one(session: aiohttp.ClientSession, base: str) -> Answer:
        try:
            async with session.get(f"{base}{path}", allow_redirects=False) as response:
                body = await response.read()
                with suppress(ValueError):
                    return Answer(response.status, json.loads(body))
                return Answer(response.status)
        except TimeoutError:
            trouble = f"no answer within {TIMEOUT_S:.0f} s"
        except aiohttp.ClientConnectorDNSError:
            trouble = "the host is unknown"
        except aiohttp.ClientConnectorError:
            trouble = "nothing listens there"
        except (aiohttp.ClientError, ValueError) as error:
            trouble = f"the answer is not HTTP ({one_line(error, 80)})"
        raise Mistake(f"{base}: {trouble}", remedy)

    async def ask() -> list[Answer]:
        limits = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=limits, trust_env=False) as session:
            return await asyncio.gather(*(get_one(session, base) for base in bases))

    return asyncio.run(ask())


def call(client: Any, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which uses the client; closes the client."""

    async def run() -> T:
        try:
            return await work()
        finally:
            await client.close()

    return asyncio.run(run())


def is_taken(port: int) -> bool:
    """True if a program listens on the port at any address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores lingering connections
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest of its parents that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def unwritable(path: Path) -> str:
    """Why a folder cannot be created or written; empty if it can."""
    there = nearest_folder(path)
    if not there.is_dir():
        return f"{there} is not a folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"
