"""Fetches pages from the public web, within limits, and never from this machine or its private network.

Strangers choose the links in search results. So every address is checked before connecting, also after a redirect, and
the connection goes to the checked address: each name is resolved once.
"""

import asyncio
import errno
import ipaddress
import re
import socket
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

Address = IPv4Address | IPv6Address

# The special-purpose registries of IANA, written out: Python's own `is_global` differs from version to version.
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # in no registry: Azure's metadata and control service
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
_HEADERS = {
    "User-Agent": "Mozilla/5.0 (compatible; slime-search-r1)",
    "Accept": "text/html,application/xhtml+xml,text/plain;q=0.8",
    "Accept-Encoding": "gzip",
}
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


class PageFailed(Exception):
    """Raised when a page cannot be fetched or read; the message says why."""


@dataclass(frozen=True)
class PageLimits:
    seconds: float = 10.0  # in total, including the wait for a connection
    max_bytes: int = 2**20  # to read, both before and after decompression; the rest of a page is ignored
    redirects: int = 5
    per_host: int = 4  # connections at once
    connections: int = 64  # to all hosts
    ports: Collection[int] = (80, 443)


class Page(NamedTuple):
    """A fetched page, not yet decoded."""

    body: bytes
    charset: str | None  # from the header


def is_public(address: Address) -> bool:
    """True for an address of the public internet. An IPv4 address embedded in an IPv6 one is checked as IPv4."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if embedded := address.ipv4_mapped or address.sixtofour:
        return is_public(embedded)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)


class CheckedResolver(aiohttp.ThreadedResolver):
    """Returns only addresses accepted by `is_allowed`; aiohttp connects to no others."""

    def __init__(self, is_allowed: Callable[[Address], bool]) -> None:
        super().__init__()
        self._is_allowed = is_allowed

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        """The host's addresses. Raises PermissionError if one of them is not allowed: aiohttp expects an OSError."""
        found = await super().resolve(host, port, family)
        for one in found:
            if not self._is_allowed(ipaddress.ip_address(one["host"])):
                problem = f"{host} has the address {one['host']}, which is not on the public web"
                raise PermissionError(errno.EACCES, problem)
        return found


class PageFetcher:
    """Fetches pages; belongs to one event loop."""

    def __init__(self, limits: PageLimits, is_allowed: Callable[[Address], bool] = is_public) -> None:
        self._limits = limits
        self._is_allowed = is_allowed
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> Page:
        """The page at `url`. Raises PageFailed."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._follow(URL(url))
        except TimeoutError:
            raise PageFailed(f"{url[:200]}: no answer within {self._limits.seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:  # ValueError: a malformed URL
            raise PageFailed(f"{url[:200]}: {str(error)[:200] or type(error).__name__}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _follow(self, url: URL) -> Page:
        for _ in range(self._limits.redirects + 1):
            self._check(url)
            async with self._open_session().get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    url = url.join(URL(response.headers["Location"]))
                    continue
                try:
                    return await self._read(response)
                finally:
                    response.close()  # discards the rest of the body
        raise PageFailed(f"{str(url)[:200]}: more than {self._limits.redirects} redirects")

    def _check(self, url: URL) -> None:
        """Raises PageFailed if the URL is not allowed. The resolver checks host names."""
        host = url.raw_host or ""
        if url.scheme not in ("http", "https") or not host or url.user is not None or url.password is not None:
            raise PageFailed(f"{str(url)[:200]} is not a plain http or https URL")
        if url.port not in self._limits.ports:
            raise PageFailed(f"{str(url)[:200]}: port {url.port} is not a web port")
        # A literal address, which aiohttp connects to without its resolver. Systems read 2130706433, 0x7f.1 and 127.1
        # as addresses as well, ipaddress does not.
        if ":" in host or _NUMERIC_LABEL.fullmatch(host.rstrip(".").rpartition(".")[2]):
            if not self._is_allowed(ipaddress.ip_address(host)):
                raise PermissionError(errno.EACCES, f"{host} is not on the public web")

    async def _read(self, response: aiohttp.ClientResponse) -> Page:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if response.status != 200:
            raise PageFailed(f"{response.url} answered {response.status}")
        if "Content-Type" in response.headers and response.content_type not in _CONTENT_TYPES:
            raise PageFailed(f"{response.url} is {response.content_type[:80]}, not text or HTML")
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise PageFailed(f"{response.url} is compressed with {encoding[:80]}, which was not requested")
        unzip = None if encoding == "identity" else zlib.decompressobj(wbits=31)  # 31: gzip
        most = self._limits.max_bytes
        body, read = bytearray(), 0
        async for chunk in response.content.iter_any():
            room = most - len(body)
            body += unzip.decompress(chunk, room) if unzip else chunk[:room]
            read += len(chunk)
            if len(body) >= most or read >= most or (unzip and unzip.eof):
                break
        return Page(bytes(body), response.charset)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(self._is_allowed),
                limit=self._limits.connections,
                limit_per_host=self._limits.per_host,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                auto_decompress=False,  # done in _read, which stops at the limit
                trust_env=False,
            )
        return self._session
