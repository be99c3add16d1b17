"""Several retriever servers, one that is down, and none that is up: who is asked, and how long that takes."""

import asyncio
import time

import pytest
from aiohttp import web
from fakes import FakeRetriever
from search_helpers import searcher

from search_rollout.search.passage import SearchResult
from search_rollout.search.searcher import Searcher

DEAD = "http://127.0.0.1:1"


async def test_servers_share_the_load():
    slow = {"trouble": lambda _: 0.02}
    async with FakeRetriever(**slow) as one, FakeRetriever(**slow) as other, searcher(one.url, other.url) as client:
        for _ in range(10):
            await asyncio.gather(*(client.search(str(number)) for number in range(8)))
    assert len(one.queries) == len(other.queries) == 40


async def test_a_slow_server_is_asked_less():
    async with FakeRetriever(trouble=lambda _: 0.3) as slow, FakeRetriever(trouble=lambda _: 0.01) as fast:
        async with searcher(slow.url, fast.url) as client:
            waiting = [asyncio.create_task(client.search(str(number))) for number in range(2)]
            for number in range(10):
                await asyncio.sleep(0.02)
                waiting.append(asyncio.create_task(client.search(f"later {number}")))
            await asyncio.gather(*waiting)
    assert len(slow.queries) < len(fast.queries)


@pytest.mark.parametrize("trouble", [lambda _: web.Response(status=500), lambda _: web.Response(status=429), None])
async def test_the_next_server_answers_at_once_for_one_that_fails(trouble):
    async with FakeRetriever(trouble=trouble) as broken, FakeRetriever() as sound:
        async with searcher(broken.url if trouble else DEAD, sound.url) as client:
            results = await asyncio.gather(*(client.search(str(number)) for number in range(20)))
    assert all(result.passages for result in results)
    assert max(result.seconds for result in results) < 1.0


async def test_a_server_that_refuses_the_key_leaves_the_work_to_the_others(caplog):
    async with FakeRetriever(trouble=lambda _: web.Response(status=403)) as locked, FakeRetriever() as sound:
        async with searcher(locked.url, sound.url) as client:
            results = [await client.search(str(number)) for number in range(10)]
    assert all(result.passages for result in results)
    assert locked.requests <= 1 and caplog.text.count("RETRIEVAL_API_KEY") <= 1


async def test_a_silent_server_leaves_time_for_another():
    async with FakeRetriever(trouble=lambda _: 9.0) as silent, FakeRetriever() as sound:
        async with searcher(silent.url, sound.url, timeout_s=1.0) as client:
            results = await asyncio.gather(*(client.search(str(number)) for number in range(4)))
    assert all(result.passages and result.seconds < 1.0 for result in results)


async def test_the_time_is_divided_among_the_servers_that_are_left():
    silent = FakeRetriever(trouble=lambda _: 9.0), FakeRetriever(trouble=lambda _: 9.0)
    async with silent[0] as one, silent[1] as other, FakeRetriever(trouble=lambda _: 0.1) as sound:
        async with searcher(one.url, other.url, sound.url, timeout_s=1.5) as client:
            results = [await client.search(str(number)) for number in range(3)]
    assert all(result.passages and result.seconds < 1.5 for result in results)
    assert len(sound.queries) == 3


async def fail_until_open(client: Searcher, caplog: pytest.LogCaptureFixture) -> None:
    """Searches until the breaker opens, which the log reports."""
    waiting: list[asyncio.Task[SearchResult]] = []
    try:
        async with asyncio.timeout(20):
            while "left alone" not in caplog.text:
                waiting.append(asyncio.create_task(client.search(str(time.monotonic()))))
                await asyncio.sleep(0.05)
    finally:
        for task in waiting:
            task.cancel()


async def test_a_dead_backend_is_asked_once_a_second_when_it_is_known(caplog):
    dead = FakeRetriever(trouble=lambda _: web.Response(status=500))
    async with dead, searcher(dead.url, retries=3, timeout_s=3.0) as client:
        await fail_until_open(client, caplog)
        asked, began = dead.requests, time.monotonic()
        results = await asyncio.gather(*(client.search(str(number)) for number in range(200)))
        assert dead.requests - asked <= 1 + (time.monotonic() - began)
    assert all(dead.url in str(result.error) for result in results)


async def test_a_backend_that_hangs_is_left_alone_after_the_first_timeouts():
    async with FakeRetriever(trouble=lambda _: 9.0) as hanging, searcher(hanging.url, timeout_s=1.0) as client:
        await asyncio.gather(*(client.search(str(number)) for number in range(20)))
        result = await client.search("one more")
    assert result.error is not None and "no answer within" in result.error and result.seconds < 0.9


async def test_a_backend_that_comes_back_is_used_again_and_the_log_says_both(caplog):
    retriever = FakeRetriever()
    async with retriever, searcher(retriever.url) as client:
        assert (await client.search("before")).passages
        await retriever.stop()
        await fail_until_open(client, caplog)
        await retriever.start()
        began = time.monotonic()
        while not (await client.search(str(time.monotonic()))).passages:
            assert time.monotonic() - began < 20.0
            await asyncio.sleep(0.02)
        results = await asyncio.gather(*(client.search(str(number)) for number in range(50)))
    assert all(result.passages for result in results)
    assert caplog.text.count("left alone") == 1
    assert sum(f"{retriever.url}/retrieve answers again" in record.getMessage() for record in caplog.records) == 1


async def test_a_burst_that_meets_one_hiccup_is_repeated_and_answered():
    def hiccup(number: int) -> web.Response | None:
        return web.Response(status=503) if number < 64 else None

    async with FakeRetriever(trouble=hiccup) as retriever, searcher(retriever.url, retries=3) as client:
        results = await asyncio.gather(*(client.search(str(number)) for number in range(64)))
    assert all(result.passages for result in results)
