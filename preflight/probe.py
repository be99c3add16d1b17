"""Short questions to servers: a GET that is over in time, whatever answers or does not."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp

from preflight.findings import one_line

TIMEOUT_S = 5.0


class Answer(NamedTuple):
    """What came of a GET: a status and the JSON if it was any; else, in words, why nothing came."""

    status: int = 0
    body: Any = None
    trouble: str = ""


def get(url: str) -> Answer:
    return get_all([url])[0]


def get_all(urls: Sequence[str]) -> list[Answer]:
    """All at the same time."""

    async def ask() -> list[Answer]:
        limits = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=limits, trust_env=False) as session:
            return await asyncio.gather(*(_get(session, url) for url in urls))

    return asyncio.run(ask())


async def _get(session: aiohttp.ClientSession, url: str) -> Answer:
    try:
        async with session.get(url, allow_redirects=False) as response:
            try:
                return Answer(response.status, await response.json(content_type=None))
            except ValueError:
                return Answer(response.status)
    except TimeoutError:
        return Answer(trouble=f"no answer within {TIMEOUT_S:.0f} s")
    except aiohttp.ClientConnectorDNSError:
        return Answer(trouble="the host is not known")
    except aiohttp.ClientConnectorError:
        return Answer(trouble="nothing listens there")
    except (aiohttp.ClientError, ValueError) as error:
        return Answer(trouble=f"it does not answer in HTTP ({one_line(error, 80)})")


def is_taken(port: int) -> bool:
    """Whether a program of this machine listens there, at any of its addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that lingers does not count
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
