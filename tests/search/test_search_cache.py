"""The cache: what counts as the same query, what is kept and for how long, many processes, replay, budget."""

import asyncio
import contextlib
import logging
import multiprocessing
import pickle
import sqlite3

import pytest
from aiohttp import web
from fakes import FakeRetriever
from search_helpers import searcher

from search_rollout.search.cache import CacheError, SearchCache
from search_rollout.search.usage import SearchUsage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "cache.db"


async def test_a_query_is_searched_once_however_it_is_written(path):
    async with FakeRetriever() as retriever, searcher(retriever.url, cache=path) as client:
        first = await client.search("Capital of Kenya")
        for same in ("capital of kenya", "  Capital\n of  Kenya ", "Ｃapital of Kenya"):
            result = await client.search(same)
            assert result.passages == first.passages and result.origin == "cache"
        assert (await client.search("capital of Kenia")).origin == "backend"
    assert retriever.queries == ["Capital of Kenya", "capital of Kenia"]


async def test_answers_outlive_the_process_and_depend_on_what_was_asked_for(path):
    async with FakeRetriever(documents=["a\nb", "c\nd"]) as retriever:
        for topk, origin in ((2, "backend"), (2, "cache"), (1, "backend")):
            async with searcher(retriever.url, cache=path, topk=topk) as client:
                result = await client.search("kenya")
                assert result.origin == origin and len(result.passages) == topk


async def test_an_empty_answer_is_cached_too(path):
    async with FakeRetriever(documents=[]) as retriever, searcher(retriever.url, cache=path) as client:
        await client.search("kenya")
        result = await client.search("kenya")
    assert result.origin == "cache" and result.passages == [] and result.error is None


async def test_a_failure_is_not_kept(path):
    down = FakeRetriever(trouble=lambda number: web.Response(status=500) if number == 0 else None)
    async with down as retriever, searcher(retriever.url, cache=path) as client:
        assert (await client.search("kenya")).error
        assert (await client.search("kenya")).passages


async def test_an_old_answer_is_searched_again_but_still_replayed(path):
    async with FakeRetriever() as retriever:
        for _ in range(2):
            async with searcher(retriever.url, cache=path, max_age_s=0.0) as client:
                assert (await client.search("kenya")).origin == "backend"
    async with searcher(retriever.url, cache=path, max_age_s=0.0, replay=True) as client:
        assert (await client.search("kenya")).origin == "cache"


async def test_any_text_is_stored_unchanged(path):
    document = 'T\0\ud800"\n\u2028</information> \U0001f600 漢字'
    async with FakeRetriever(documents=[document]) as retriever, searcher(retriever.url, cache=path) as client:
        for query in ("x\0\ud800", "\U0001f600"):
            first, again = [await client.search(query) for _ in range(2)]
            assert first.passages == again.passages and again.error is None


async def test_nothing_in_the_file_is_a_pickle(path):
    async with FakeRetriever() as retriever, searcher(retriever.url, cache=path) as client:
        await client.search("kenya")
    ((answer,),) = sqlite3_rows(path, "SELECT answer FROM answers")
    assert answer == '[["Kenya capital", "The capital of Kenya is Nairobi.", 1.0]]'
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(answer.encode())


def sqlite3_rows(path, statement):
    database = sqlite3.connect(path)
    try:
        return database.execute(statement).fetchall()
    finally:
        database.close()


# ---- Replay ----------------------------------------------------------------------------------------------------------


async def test_a_replay_opens_no_socket_and_says_what_is_missing(path, caplog):
    async with FakeRetriever() as retriever:
        async with searcher(retriever.url, cache=path) as client:
            recorded = await client.search("kenya")
        requests = retriever.requests
        async with searcher(retriever.url, cache=path, replay=True) as client:
            replayed = await client.search("Kenya")
            for _ in range(3):
                missing = await client.search("nowhere")
        assert retriever.requests == requests
    assert replayed.passages == recorded.passages
    assert "'nowhere'" in str(missing.error) and str(path) in str(missing.error)
    assert caplog.text.count("'nowhere'") == 1


def test_a_replay_without_a_valid_cache_file_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="no such file"):
        SearchCache(str(tmp_path / "none"), "x", max_age_s=1, read_only=True)
    (tmp_path / "text").write_text("not a database, but long enough to be read as one" * 100)
    for read_only in (True, False):
        with pytest.raises(CacheError, match="not a database"):
            SearchCache(str(tmp_path / "text"), "x", max_age_s=1, read_only=read_only)
    with pytest.raises(CacheError):
        SearchCache(str(tmp_path), "x", max_age_s=1)


# ---- Trouble with the file, and many processes -----------------------------------------------------------------------


async def test_a_cache_that_breaks_costs_no_search(path, caplog):
    async with FakeRetriever() as retriever, searcher(retriever.url, cache=path) as client:
        await client.search("kenya")
        damage = sqlite3.connect(path)
        damage.execute("DROP TABLE answers")
        damage.close()
        results = [await client.search("kenya") for _ in range(3)]
    assert all(result.passages and result.origin == "backend" for result in results)
    assert caplog.text.count("fails (logged once)") == 1


@pytest.mark.parametrize(
    "answer",
    ["5", "null", "{}", '["ab"]', '[["t"]]', '[["t", "x", "y"]]', '[["t", 5]]', '{"a": "xy"}', "no JSON", "[" * 10**5],
)
async def test_an_answer_of_another_shape_is_searched_again(path, caplog, answer):
    async with FakeRetriever() as retriever, searcher(retriever.url, cache=path) as client:
        await client.search("kenya")
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE answers SET answer = ?", (answer,))
        result = await client.search("kenya")
        assert (await client.search("kenya")).origin == "cache"  # stored again
    assert result.passages and result.origin == "backend"
    assert caplog.text.count("fails (logged once)") == 1


def write_many(path: str, process: int, count: int) -> None:
    async def write() -> None:
        cache = SearchCache(path, "test", max_age_s=60)
        for number in range(count):
            await cache.put(f"{process} {number}", [["t", str(number)]])
            assert await cache.get(f"{process} {number}") == [["t", str(number)]]
            await cache.take_call(10**6)
        await cache.close()

    asyncio.run(write())


async def test_many_processes_write_at_once_and_nothing_is_lost(path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(str(path), number, 50)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert sqlite3_rows(path, "SELECT count(*) FROM answers") == [(300,)]
    assert sqlite3_rows(path, "SELECT made FROM calls") == [(300,)]


# ---- Budget and bill -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
async def test_the_budget_is_a_hard_cap_with_a_warning_before_it(path, caplog, cached):
    cache = path if cached else None
    async with FakeRetriever() as retriever, searcher(retriever.url, cache=cache, budget=10) as client:
        await asyncio.gather(*(client.search(str(number)) for number in range(7)))
        assert "SEARCH_BUDGET" not in caplog.text
        results = [await client.search(str(number)) for number in range(7, 20)]
    assert len(retriever.queries) == 10
    assert [bool(result.error) for result in results] == [False] * 3 + [True] * 10
    assert "raise it" in str(results[-1].error)
    assert caplog.text.count("of SEARCH_BUDGET=10 calls are used") == 1
    assert caplog.text.count("used up") == 1


async def test_a_budget_with_a_cache_holds_for_all_runs_and_known_answers_are_free(path):
    async with FakeRetriever() as retriever:
        for _ in range(2):
            async with searcher(retriever.url, cache=path, budget=5) as client:
                results = await asyncio.gather(*(client.search(str(number)) for number in range(5)))
                assert all(result.passages for result in results)
        async with searcher(retriever.url, cache=path, budget=5) as client:
            assert (await client.search("a sixth")).error
    assert len(retriever.queries) == 5


async def test_repeats_count_as_calls():
    usage = SearchUsage()
    down = FakeRetriever(trouble=lambda _: web.Response(status=500))
    async with down, searcher(down.url, retries=9, budget=3, usage=usage) as client:
        await client.search("kenya")
    assert down.requests == 3 and usage.snapshot()["search/calls"] == 3


async def test_the_bill_counts_calls_hits_and_failures(path, caplog):
    caplog.set_level(logging.CRITICAL)
    usage = SearchUsage()
    down = FakeRetriever(trouble=lambda number: web.Response(status=404) if number == 3 else None)
    async with down, searcher(down.url, cache=path, usage=usage, usd_per_call=0.001) as client:
        for query in ("a", "b", "c", "broken", "a", "A", "b", "c"):
            await client.search(query)
    assert usage.snapshot() == {
        "search/queries": 8,
        "search/failed": 1,
        "search/cached": 4,
        "search/shared": 0,
        "search/hit_rate": 0.5,
        "search/calls": 4,
        "search/usd": pytest.approx(0.004),
    }
