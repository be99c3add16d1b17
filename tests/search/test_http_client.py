"""The JSON client: what is tried again, and how soon a pause between two tries is called off."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from search_rollout.http_client import JsonClient, Retry, TransientFailure

Answer = Callable[[int], web.Response]


@asynccontextmanager
async def service(answer: Answer, *, retries: int = 8, pause_s: float = 0.01) -> AsyncIterator[tuple[JsonClient, list]]:
    """A client, and a list that grows with each request that the service gets."""
    requests: list[float] = []

    async def handle(_: web.Request) -> web.Response:
        requests.append(time.monotonic())
        return answer(len(requests))

    app = web.Application()
    app.router.add_post("/x", handle)
    async with TestServer(app) as server:
        client = JsonClient(f"http://127.0.0.1:{server.port}", timeout_s=30.0, retries=retries, pause_s=pause_s)
        try:
            yield client, requests
        finally:
            await client.close()


def busy(**headers: str) -> Answer:
    return lambda _: web.Response(status=503, headers=headers)


@pytest.mark.parametrize("headers", [{"Retry-After": "30"}, {}])
async def test_an_abort_ends_the_pause_between_two_tries_and_sends_nothing(headers):
    async with service(busy(**headers), pause_s=1000.0) as (client, requests):
        aborted: list[float] = []
        call = asyncio.create_task(client.post("/x", {}, called_off=lambda: bool(aborted)))
        while not requests:  # noqa: ASYNC110  (the server has no event for it)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        aborted.append(time.monotonic())
        with pytest.raises(TransientFailure, match="answered 503"):
            await asyncio.wait_for(call, 5.0)
        assert time.monotonic() - aborted[0] < 0.5
        assert len(requests) == 1


async def test_no_try_follows_one_during_which_the_call_was_called_off():
    async with service(busy()) as (client, requests):
        with pytest.raises(TransientFailure):
            await client.post("/x", {}, called_off=lambda: bool(requests))
        assert len(requests) == 1


async def test_a_recovered_service_is_used_and_a_dead_one_is_tried_a_limited_number_of_times():
    def back(number: int) -> web.Response:
        return web.Response(status=503) if number < 4 else web.json_response("here")

    async with service(back) as (client, requests):
        assert await client.post("/x", {}) == "here" and len(requests) == 4
    async with service(busy(), retries=3) as (client, requests):
        with pytest.raises(TransientFailure):
            await client.post("/x", {})
        assert len(requests) == 4


def test_pauses_are_random_and_grow_up_to_sixteen_times_the_first():
    by_try = list(zip(*(Retry(retries=7, pause_s=1.0).pauses() for _ in range(200)), strict=True))
    for longest, pauses in zip((1, 2, 4, 8, 16, 16, 16), by_try, strict=True):
        assert min(pauses) < 0.2 * longest < 0.8 * longest < max(pauses) <= longest
