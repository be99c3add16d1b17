"""Batches, equal queries, the cache, the queue's bound: the batcher around a search that waits to be let go."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from local_dense_retriever.batcher import Batcher, Limits, QueryFailedError, QueueFullError, SearchFailedError
from local_dense_retriever.corpus import Passage
from local_dense_retriever.metrics import Metrics
from local_dense_retriever.searcher import Hit, UnavailableError

CORPUS_SIZE = 20


class HeldSearch:
    """Finds `query/0`, `query/1`, …; notes every batch; while `gate` is closed the searching thread stands."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[str], int]] = []
        self.threads: set[int] = set()
        self.began, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.broken = False

    def __call__(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        self.batches.append((list(queries), topk))
        self.began.set()
        self.threads.add(threading.get_ident())
        assert self.gate.wait(timeout=10)
        if self.broken or any("poison" in query for query in queries):
            raise RuntimeError("CUDA out of memory")
        ranks = range(min(topk, CORPUS_SIZE))
        return [[Hit(Passage(f"{query}/{rank}", query), 1.0 - rank / 100) for rank in ranks] for query in queries]


@pytest.fixture
def search() -> HeldSearch:
    return HeldSearch()


@asynccontextmanager
async def batcher_of(search: HeldSearch, limits: Limits | None = None) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1) as owner:
        batcher = Batcher(search, owner, limits or Limits(), Metrics())
        try:
            yield batcher
        finally:
            search.gate.set()
            batcher.close()


@asynccontextmanager
async def busy_batcher_of(search: HeldSearch, limits: Limits | None = None) -> AsyncIterator[Batcher]:
    """One whose first batch, of the query "first", is being searched until the gate is opened."""
    search.gate.clear()
    async with batcher_of(search, limits) as batcher:
        first = asyncio.create_task(batcher.search(["first"], 1))
        await asyncio.to_thread(search.began.wait, 5)
        yield batcher
        search.gate.set()
        await first


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


async def turns() -> None:
    """Lets every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_query_gets_its_own_hits_in_the_order_of_the_request(search: HeldSearch) -> None:
    async with batcher_of(search) as batcher:
        found = await batcher.search(["b", "a", "b"], 2)
    assert [ids(hits) for hits in found] == [["b/0", "b/1"], ["a/0", "a/1"], ["b/0", "b/1"]]
    assert search.batches == [(["b", "a"], 2)]


async def test_requests_within_the_window_share_a_batch(search: HeldSearch) -> None:
    async with batcher_of(search, Limits(window_s=0.2)) as batcher:
        await asyncio.gather(*(batcher.search([str(number)], 1) for number in range(5)))
    assert search.batches == [(["0", "1", "2", "3", "4"], 1)]


async def test_a_full_batch_does_not_wait_for_the_window(search: HeldSearch) -> None:
    async with batcher_of(search, Limits(window_s=60, max_batch=3)) as batcher, asyncio.timeout(5):
        await asyncio.gather(*(batcher.search([str(number)], 1) for number in range(3)))
    assert len(search.batches) == 1


async def test_the_next_batch_gathers_while_one_is_searched_and_none_is_above_its_bound(search: HeldSearch) -> None:
    async with busy_batcher_of(search, Limits(max_batch=4)) as batcher:
        requests = [asyncio.create_task(batcher.search([str(number)], 1)) for number in range(6)]
        await turns()
        search.gate.set()
        await asyncio.gather(*requests)
    assert [queries for queries, _ in search.batches] == [["first"], ["0", "1", "2", "3"], ["4", "5"]]
    assert len(search.threads) == 1


async def test_a_batch_is_searched_at_its_largest_topk_and_each_request_gets_its_own(search: HeldSearch) -> None:
    async with busy_batcher_of(search) as batcher:
        one, five = (asyncio.create_task(batcher.search([f"top{topk}"], topk)) for topk in (1, 5))
        await turns()
        search.gate.set()
        assert ids((await one)[0]) == ["top1/0"]
        assert len((await five)[0]) == 5
    assert search.batches[1] == (["top1", "top5"], 5)


@pytest.mark.parametrize(("topk", "searches"), [(1, 1), (2, 2)])
async def test_a_query_in_flight_is_joined_unless_more_is_wanted_of_it(
    search: HeldSearch, topk: int, searches: int
) -> None:
    async with busy_batcher_of(search) as batcher:
        second = asyncio.create_task(batcher.search(["first"], topk))
        await turns()
        search.gate.set()
        assert len((await second)[0]) == topk
    assert len(search.batches) == searches


async def test_equal_queries_that_wait_are_searched_once_at_the_larger_topk(search: HeldSearch) -> None:
    async with busy_batcher_of(search) as batcher:
        requests = [asyncio.create_task(batcher.search(["same"], topk)) for topk in (2, 4, 1)]
        await turns()
        search.gate.set()
        assert [len(hits) for [hits] in await asyncio.gather(*requests)] == [2, 4, 1]
    assert search.batches[1:] == [(["same"], 4)]


async def test_a_kept_list_answers_up_to_its_length(search: HeldSearch) -> None:
    async with batcher_of(search) as batcher:
        for topk in (5, 3, 5, 6, 5):
            assert len((await batcher.search(["q"], topk))[0]) == topk
    assert [topk for _, topk in search.batches] == [5, 6]


async def test_a_kept_list_that_has_the_whole_corpus_answers_any_topk(search: HeldSearch) -> None:
    async with batcher_of(search) as batcher:
        for topk in (CORPUS_SIZE + 1, 100):
            assert len((await batcher.search(["q"], topk))[0]) == CORPUS_SIZE
    assert len(search.batches) == 1


async def test_the_least_recently_used_result_is_dropped_first(search: HeldSearch) -> None:
    async with batcher_of(search, Limits(cache_size=2)) as batcher:
        for query in ("a", "b", "a", "c", "a", "b"):  # c drops b
            await batcher.search([query], 1)
    assert [queries for queries, _ in search.batches] == [["a"], ["b"], ["c"], ["b"]]


async def test_without_a_cache_every_request_is_searched(search: HeldSearch) -> None:
    async with batcher_of(search, Limits(cache_size=0)) as batcher:
        for _ in range(2):
            await batcher.search(["a"], 1)
    assert len(search.batches) == 2


async def test_a_full_queue_refuses_at_once_and_takes_none_of_the_request(search: HeldSearch) -> None:
    async with busy_batcher_of(search, Limits(max_queue=2)) as batcher:
        waiting = asyncio.create_task(batcher.search(["a"], 1))
        await turns()
        with pytest.raises(QueueFullError):
            await batcher.search(["b", "c"], 1)
        joined = asyncio.create_task(batcher.search(["a", "d"], 1))  # one joins, one is new: there is room
        await turns()
        search.gate.set()
        await asyncio.gather(waiting, joined)
    assert search.batches[1:] == [(["a", "d"], 1)]


async def test_a_cancelled_request_leaves_the_queue(search: HeldSearch) -> None:
    async with busy_batcher_of(search) as batcher:
        request = asyncio.create_task(batcher.search(["a", "b"], 1))
        other = asyncio.create_task(batcher.search(["b"], 1))
        await turns()
        request.cancel()
        await turns()
        search.gate.set()
        await other
        assert request.cancelled()
    assert search.batches[1:] == [(["b"], 1)]  # "b" is still wanted


async def test_when_all_have_left_the_next_request_is_still_served(search: HeldSearch) -> None:
    async with batcher_of(search, Limits(window_s=0.05)) as batcher:
        request = asyncio.create_task(batcher.search(["a"], 1))
        await turns()
        request.cancel()
        await asyncio.sleep(0.1)
        await batcher.search(["b"], 1)
    assert search.batches == [(["b"], 1)]


async def test_a_search_that_raises_is_logged_and_its_failure_is_not_kept(
    search: HeldSearch, caplog: pytest.LogCaptureFixture
) -> None:
    async with batcher_of(search) as batcher:
        for _ in range(2):
            with pytest.raises(SearchFailedError):  # no query has succeeded yet: it may be the search itself
                await batcher.search(["poison"], 1)
        assert ids((await batcher.search(["fine"], 1))[0]) == ["fine/0"]
    assert "CUDA out of memory" in caplog.text and "first='poison'" in caplog.text


async def test_a_query_that_cannot_be_searched_fails_alone(search: HeldSearch) -> None:
    async with busy_batcher_of(search) as batcher:
        good = [asyncio.create_task(batcher.search([f"good {number}"], 1)) for number in range(20)]
        bad = [asyncio.create_task(batcher.search([f"poison {number}"], 1)) for number in range(3)]
        await turns()
        search.gate.set()
        for number, request in enumerate(good):
            assert ids((await request)[0]) == [f"good {number}/0"]
        for number, request in enumerate(bad):
            with pytest.raises(QueryFailedError) as caught:
                await request
            assert str(caught.value) == f"poison {number}"


async def test_a_single_failing_query_is_distinguished_from_a_broken_search(search: HeldSearch) -> None:
    async with batcher_of(search) as batcher:
        await batcher.search(["good"], 1)
        with pytest.raises(QueryFailedError):
            await batcher.search(["poison"], 1)
        search.broken = True
        with pytest.raises(SearchFailedError):
            await batcher.search(["another"], 1)
        search.broken = False
        assert ids((await batcher.search(["another"], 1))[0]) == ["another/0"]


async def test_a_broken_search_is_not_tried_for_each_query_of_a_batch(search: HeldSearch) -> None:
    async with batcher_of(search) as batcher:
        await batcher.search(["good"], 1)
        search.broken = True
        requests = [batcher.search([str(number)], 1) for number in range(40)]
        for failure in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(failure, SearchFailedError)
    assert [len(queries) for queries, _ in search.batches] == [1, 40, 1]


async def test_the_query_that_probes_the_search_does_not_shorten_what_is_kept(search: HeldSearch) -> None:
    async with batcher_of(search) as batcher:
        await batcher.search(["good"], 5)
        with pytest.raises(QueryFailedError):
            await batcher.search(["poison"], 1)
        searches = len(search.batches)
        assert len((await batcher.search(["good"], 5))[0]) == 5
        assert len(search.batches) == searches


async def test_an_index_that_does_not_answer_is_asked_once_for_a_batch(search: HeldSearch) -> None:
    """Each call may take as long as its timeout: one by one, 64 queries would take 64 of them."""

    def down(queries: Sequence[str], topk: int) -> list[list[Hit]]:
        search(queries, topk)
        raise UnavailableError("Milvus is down")

    with ThreadPoolExecutor(1) as owner:
        batcher = Batcher(down, owner, Limits(), Metrics())
        results = await asyncio.gather(batcher.search(["a", "b"], 3), batcher.search(["c"], 3), return_exceptions=True)
        batcher.close()
    assert [type(result) for result in results] == [UnavailableError, UnavailableError]
    assert search.batches == [(["a", "b", "c"], 3)]
