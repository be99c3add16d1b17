"""Fetching pages: which addresses may be asked, at every step, and what one page may cost."""

import asyncio
import gzip
import ipaddress
import socket
import time
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from hypothesis import example, given
from hypothesis import strategies as st
from web_fakes import FakePage, FakeWeb, redirect, zip_bomb

from search_rollout.search.page_fetcher import (
    CheckedResolver,
    Page,
    PageFailed,
    PageFetcher,
    PageLimits,
    is_public,
)


def limits(web: FakeWeb, **changes: Any) -> PageLimits:
    return PageLimits(**({"ports": (web.port,), "seconds": 5.0} | changes))


def anywhere(_: object) -> bool:
    return True


async def fetch(web: FakeWeb, path: str, is_allowed: Any = anywhere, **changes: Any) -> Page:
    """The page of a host on loopback, which `is_allowed` lets pass."""
    async with web:
        fetcher = PageFetcher(limits(web, **changes), is_allowed)
        try:
            return await fetcher.fetch(web.url(path))
        finally:
            await fetcher.close()


async def failure_of(web: FakeWeb, path: str, **changes: Any) -> str:
    with pytest.raises(PageFailed) as caught:
        await fetch(web, path, **changes)
    return str(caught.value)


# Addresses.


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254"),
        *("ff02::1", "2001:db8::1", "2001::1", "100::1", "3fff::1", "64:ff9b:1::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1"),
    ],
)
def test_an_address_that_is_not_on_the_public_web_is_refused(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "93.184.215.14", "172.15.0.1", "172.32.0.1", "192.169.0.1", "100.63.0.1", "100.128.0.1"),
        *("2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
    ],
)
def test_an_address_of_the_public_web_is_allowed(address):
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
@example(ipaddress.ip_address("192.0.0.9"))
def test_nothing_is_public_that_python_calls_private_reserved_or_local(address):
    embedded = isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.sixtofour)
    if is_public(address) and not embedded and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert address.is_global and not address.is_multicast and not address.is_reserved


# What is asked, and what is not.


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.0.1."),
        *("[::1]", "[::ffff:127.0.0.1]", "①②⑦.0.0.1", "0"),
    ],
)
async def test_loopback_is_not_asked_however_it_is_written(host):
    async with FakeWeb({"/": FakePage("secret")}) as web:
        fetcher = PageFetcher(limits(web))
        with pytest.raises(PageFailed):
            await fetcher.fetch(web.url("/", host))
        await fetcher.close()
    assert web.requests == []


@pytest.mark.parametrize(
    "to",
    [
        "http://localhost:{port}/b",
        "http://127.0.0.2:{port}/b",
        "//127.0.0.2:{port}/b",
        "http://[::ffff:7f00:2]:{port}/b",
    ],
)
async def test_a_redirect_to_a_private_address_is_not_followed(to):
    def first_only(address: object) -> bool:  # as if 127.0.0.1 were a public host
        return address == ipaddress.ip_address("127.0.0.1") and not len(web.requests)

    web = FakeWeb({"/a": redirect(to), "/b": FakePage("secret")})
    assert "public web" in await failure_of(web, "/a", is_allowed=first_only)
    assert web.requests == ["/a"]


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/", "gopher://h/", "http://u:p@127.0.0.1:{port}/b"]
)
async def test_a_redirect_to_anything_but_a_plain_web_address_is_not_followed(to):
    web = FakeWeb({"/a": redirect(to), "/b": FakePage("secret")})
    assert "not a plain http" in await failure_of(web, "/a")
    assert web.requests == ["/a"]


async def test_other_ports_than_the_webs_are_not_asked():
    async with FakeWeb({"/": FakePage("secret")}) as web:
        fetcher = PageFetcher(PageLimits(), anywhere)
        with pytest.raises(PageFailed, match="port"):
            await fetcher.fetch(web.url("/"))
        await fetcher.close()
    assert web.requests == []


class Rebinding(AbstractResolver):
    """A name that is public when it is looked up first, and this machine ever after."""

    def __init__(self) -> None:
        self.answers = iter(["93.184.215.14", "127.0.0.1"])

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        address = next(self.answers)
        return [{"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


async def test_a_name_is_checked_each_time_that_it_is_resolved(monkeypatch):
    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", Rebinding().resolve)
    resolver = CheckedResolver(is_public)
    assert (await resolver.resolve("evil.test"))[0]["host"] == "93.184.215.14"
    with pytest.raises(PermissionError, match=r"evil\.test has the address 127\.0\.0\.1"):
        await resolver.resolve("evil.test")


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    asked = []

    async def resolve(self: object, host: str, port: int = 0, family: object = None) -> list[Any]:
        asked.append(host)
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    async with FakeWeb({"/": FakePage("<p>x")}) as web:
        fetcher = PageFetcher(limits(web), anywhere)
        await fetcher.fetch(web.url("/", "nowhere.invalid"))  # no resolver but this one knows the name
        await fetcher.close()
    assert asked == ["nowhere.invalid"] and web.requests == ["/"]


async def test_neither_cookies_nor_a_referer_are_sent():
    pages = {"/a": redirect("/b"), "/b": FakePage("x")}
    pages["/a"].headers["Set-Cookie"] = "id=7"
    web = FakeWeb(pages)
    await fetch(web, "/a")
    assert not {"Cookie", "Referer", "Authorization"} & set(web.headers[1])


# What comes back.


async def test_a_page_comes_with_the_charset_of_its_header():
    web = FakeWeb({"/": FakePage(b"caf\xe9", type="text/html; charset=latin-1")})
    assert await fetch(web, "/") == Page(b"caf\xe9", "latin-1")


async def test_redirects_are_followed_up_to_a_number():
    pages = {f"/{n}": redirect(f"/{n + 1}") for n in range(9)} | {"/9": FakePage("there")}
    assert (await fetch(FakeWeb(pages), "/4")).body == b"there"
    assert "more than 5 redirects" in await failure_of(FakeWeb(pages), "/0")


async def test_a_redirect_loop_ends():
    web = FakeWeb({"/": redirect("/")})
    assert "redirects" in await failure_of(web, "/")
    assert len(web.requests) == 6


async def test_a_huge_page_is_cut_at_the_limit():
    web = FakeWeb({"/": FakePage(b"x" * 3_000_000, parts=30)})
    assert len((await fetch(web, "/", max_bytes=100_000)).body) == 100_000


async def test_a_compressed_page_is_unpacked_and_a_bomb_only_up_to_the_limit():
    web = FakeWeb({"/": FakePage(gzip.compress(b"hello" * 1000), headers={"Content-Encoding": "gzip"})})
    assert (await fetch(web, "/")).body == b"hello" * 1000
    assert len((await fetch(FakeWeb({"/": zip_bomb(100)}), "/", max_bytes=100_000)).body) == 100_000


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (FakePage("x", status=404), "answered 404"),
        (FakePage("x", status=302), "answered 302"),  # without Location
        (FakePage(b"%PDF", type="application/pdf"), "application/pdf"),
        (FakePage(b"\0", type="image/png"), "image/png"),
        (FakePage(b"x", headers={"Content-Encoding": "br"}), "compressed with br"),
        (FakePage(b"no gzip", headers={"Content-Encoding": "gzip"}), "header"),
        (FakePage(b"x" * 1000, cut=True, parts=2), ""),
        (redirect("http://[bad"), ""),
    ],
)
async def test_a_response_that_is_not_a_page_is_an_error(page, words):
    assert words in await failure_of(FakeWeb({"/": page}), "/")


async def test_a_slow_page_is_left_after_its_time():
    began = time.monotonic()
    drip = FakePage(b"x" * 100, parts=100, delay_s=0.1)  # never silent for long
    assert "no answer within 0.3 s" in await failure_of(FakeWeb({"/": drip}), "/", seconds=0.3)
    assert time.monotonic() - began < 8.0


@pytest.mark.parametrize(
    "url", ["", "x", "http://", "http:///p", "javascript:alert(1)", "http://[", "http://a:b:c/", "//h/"]
)
async def test_a_malformed_url_is_an_error(url):
    fetcher = PageFetcher(PageLimits(), anywhere)
    with pytest.raises(PageFailed):
        await fetcher.fetch(url)
    await fetcher.close()


async def test_one_host_has_no_more_connections_than_allowed():
    async with FakeWeb({"/": FakePage("x", delay_s=0.05)}) as web:
        fetcher = PageFetcher(limits(web, per_host=2), anywhere)
        await asyncio.gather(*(fetcher.fetch(web.url("/")) for _ in range(8)))
        await fetcher.close()
    assert web.most_at_once == 2
