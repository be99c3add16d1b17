"""Ten thousand request bodies that no client of ours would send: each is answered, and none with a 500."""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from retriever_fakes import colour_server, wait_until_ready
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.slow

MUTATED, FROM_SCHEMA = 9000, 2000
ALLOWED = {200, 413, 422}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PIECES = (
    b'{"queries": [', b'"queries"', b'"topk"', b'"return_scores"', b"{", b"}", b"[", b"]", b":", b",", b'"', b"null",
    b"true", b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 400, b"3", b'"red"', b'" "', b'""', b"\\ud83d", b"\\u0000",
    b"\x00", b"\xff\xfe", b"\xc3", "漢字😀".encode(), b"[" * 2000, b'{"a":' * 2000, b"x" * 20_000, b"\\", b"\n",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 100, 101, 2**63, 10**400, 1.5, 3.0, float("nan"), float("inf"), "", " ", "3", "red",
    "\x00", "é" * 10_001, "\u202e", "\ud800", [], {}, [[]], ["red"], ["red", None], ["red"] * 513, ["red", "red"],
    {"red": 1},
)  # fmt: skip


def body(choose: random.Random) -> bytes:
    """Soup, a request with wrong values, or a good request with a few bytes changed."""
    kind = choose.randrange(3)
    if kind == 0:
        return b"".join(choose.choices(PIECES, k=choose.randint(0, 12)))
    if kind == 1:
        keys = choose.sample(["queries", "topk", "return_scores", "query", ""], k=choose.randint(0, 4))
        return json.dumps({key: choose.choice(VALUES) for key in keys}).encode()
    good = bytearray(json.dumps({"queries": ["red", "green 漢"], "topk": 2, "return_scores": True}).encode())
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(good))
        good[place : place + choose.randint(0, 3)] = choose.choice([b"", bytes([choose.randrange(256)]), b'"', b"\\u"])
    return bytes(good)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with colour_server() as (_, url):
        wait_until_ready(url)
        yield url


async def test_mutated_bodies_are_answered_and_never_with_500(url: str) -> None:
    choose = random.Random(0)
    types = ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
    seen: dict[int, int] = {}

    async def client(session: aiohttp.ClientSession, count: int) -> None:
        for _ in range(count):
            sent = body(choose)
            headers = {"Content-Type": choose.choice(types)}
            async with session.post(f"{url}/retrieve", data=sent, headers=headers) as reply:
                answer = json.loads(await reply.read())
                assert reply.status in ALLOWED, sent
                assert ("result" if reply.status == 200 else "detail") in answer
                seen[reply.status] = seen.get(reply.status, 0) + 1

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as clients:
        for _ in range(10):
            clients.create_task(client(session, MUTATED // 10))
    assert sum(seen.values()) == MUTATED
    assert seen[200] > 100 and seen[422] > 1000  # the mutations reach both sides


def test_requests_made_from_the_openapi_document_are_answered_as_it_says(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    seen: dict[int, int] = {}

    with httpx.Client(trust_env=False) as session:

        @given(case=schema["/retrieve"]["POST"].as_strategy())
        @settings(
            max_examples=FROM_SCHEMA,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def answered(case: schemathesis.Case) -> None:
            reply = session.post(f"{url}/retrieve", json=case.body)
            assert reply.status_code in ALLOWED, case.body
            case.validate_response(reply, checks=CHECKS)
            seen[reply.status_code] = seen.get(reply.status_code, 0) + 1

        answered()
    assert sum(seen.values()) >= FROM_SCHEMA and seen[200] > FROM_SCHEMA / 2


def test_whatever_else_the_document_offers_is_answered_too(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
    for path in paths:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            assert httpx.request(method, url + path, trust_env=False).status_code < 500
