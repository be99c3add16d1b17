"""The retriever's client: answers of every shape, and trouble of every kind as a sentence instead of an exception."""

import asyncio
import logging

import pytest
from aiohttp import web
from fakes import FakeRetriever
from search_helpers import searcher

from search_rollout.config import ConfigError, load_config
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.search.searcher import MAX_TEXT


async def search(
    retriever: FakeRetriever, *, query: str = "kenya", timeout_s: float = 5.0, retries: int = 0, url: str = "{}"
) -> SearchResult:
    async with retriever, searcher(url.format(retriever.url), timeout_s=timeout_s, retries=retries) as client:
        return await client.search(query)


def answer(body: str, status: int = 200) -> FakeRetriever:
    return FakeRetriever(trouble=lambda _: web.Response(text=body, status=status))


async def test_passages_have_the_title_without_its_quotes():
    result = await search(FakeRetriever(documents=['"Kenya"\nIn Africa.\nEast.']))
    assert result.passages == [Passage("Kenya", "In Africa.\nEast.")] and result.error is None


KEPT = {"0.87654321": [0.8765], "2": [2.0], "NaN": [], "Infinity": [], '"high"': [], "null": []}


@pytest.mark.parametrize("score", KEPT)
async def test_a_score_that_is_a_number_is_kept(score):
    body = f'{{"result": [[{{"document": {{"contents": "T\\nx"}}, "score": {score}}}]]}}'
    assert [passage.as_row()[2:] for passage in (await search(answer(body))).passages] == [KEPT[score]]


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/retrieve"])
async def test_the_url_may_name_the_endpoint_or_not(url):
    assert (await search(FakeRetriever(), url=url)).passages


async def test_documents_without_scores_are_read_too():
    body = '{"result": [[{"id": "1", "contents": "\\"T\\"\\nx"}, {"title": "U", "text": "y"}]]}'
    assert (await search(answer(body))).passages == [Passage("T", "x"), Passage("U", "y")]


async def test_more_documents_than_asked_for_are_cut():
    body = '{"result": [[%s]]}' % ", ".join(['{"contents": "t\\nx"}'] * 9)  # noqa: UP031  (braces)
    assert len((await search(answer(body))).passages) == 3


async def test_no_documents_are_not_an_error():
    result = await search(answer('{"result": [[]]}'))
    assert result.passages == [] and result.error is None


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("nope", 200, "not JSON"),
        ("{}", 200, "unexpected answer"),
        ('{"result": 5}', 200, "unexpected answer"),
        ('{"result": [[{"document": 1}]]}', 200, "unexpected answer"),
        ('{"result": [[{"contents": 5}]]}', 200, "unexpected answer"),
        ("bad query", 422, "422: bad query"),
        ("loading", 503, "503: loading"),
    ],
)
async def test_trouble_becomes_a_sentence(body, status, words):
    result = await search(answer(body, status), timeout_s=1.0)
    assert result.passages == [] and result.error is not None and words in result.error


async def test_a_silent_server_is_left_after_the_timeout():
    result = await search(FakeRetriever(trouble=lambda _: 3.0), timeout_s=0.2)
    assert result.error is not None and result.seconds < 2.0


async def test_a_refused_connection_is_reported_with_the_url():
    async with searcher("http://127.0.0.1:1", retries=1, timeout_s=1.0) as client:
        result = await client.search("x")
    assert result.error is not None and "http://127.0.0.1:1/retrieve" in result.error


async def test_temporary_failures_are_retried():
    retriever = FakeRetriever(trouble=lambda n: web.Response(status=503) if n < 2 else None)
    assert (await search(retriever, retries=3)).passages
    assert len(retriever.queries) == 3


async def test_permanent_failures_are_not_retried():
    retriever = answer("bad", 400)
    await search(retriever, retries=3)
    assert len(retriever.queries) == 1


async def test_the_timeout_bounds_all_tries_together():
    retriever = FakeRetriever(trouble=lambda _: web.Response(status=503))
    result = await search(retriever, retries=100, timeout_s=1.0)
    assert result.seconds < 3.0


async def test_a_retry_after_is_waited_out():
    header = {"Retry-After": "1"}
    retriever = FakeRetriever(trouble=lambda n: web.Response(status=429, headers=header) if n == 0 else None)
    result = await search(retriever, retries=1)
    assert result.passages and 1.0 <= result.seconds < 3.0


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2199 23:59:59 GMT"])
async def test_a_retry_after_that_outlasts_the_budget_is_not_waited_for(value):
    retriever = FakeRetriever(trouble=lambda _: web.Response(status=503, headers={"Retry-After": value}))
    result = await search(retriever, retries=5)
    assert result.error is not None and result.seconds < 1.0 and len(retriever.queries) == 1


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "inf", "Thu, 01 Jan 1970 00:00:00 GMT"])
async def test_a_meaningless_retry_after_is_ignored(value):
    header = {"Retry-After": value}
    retriever = FakeRetriever(trouble=lambda n: web.Response(status=429, headers=header) if n == 0 else None)
    assert (await search(retriever, retries=1)).passages


async def test_no_more_searches_than_allowed_run_at_once():
    running, most = 0, 0

    class Counting(FakeRetriever):
        async def _retrieve(self, request: web.Request) -> web.StreamResponse:
            nonlocal running, most
            queries = len((await request.json())["queries"])
            running += queries
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= queries
            return await super()._retrieve(request)

    async with Counting() as retriever, searcher(retriever.url, concurrency=4) as client:
        results = await asyncio.gather(*(client.search(str(n)) for n in range(20)))
    assert all(result.passages for result in results) and most == 4


async def test_queries_of_one_moment_go_in_few_requests_and_each_gets_its_own_answer():
    sizes = []

    class Echo(FakeRetriever):
        async def _retrieve(self, request: web.Request) -> web.StreamResponse:
            queries = (await request.json())["queries"]
            sizes.append(len(queries))
            return web.json_response({"result": [[{"contents": f"T\n{query}"}] for query in queries]})

    async with Echo() as retriever, searcher(retriever.url, concurrency=64) as client:
        results = await asyncio.gather(*(client.search(str(n)) for n in range(64)))
    assert [result.passages for result in results] == [[Passage("T", str(n))] for n in range(64)]
    assert sizes == [16] * 4


async def test_one_query_that_the_server_does_not_take_costs_no_other_its_answer():
    class Picky(FakeRetriever):
        async def _retrieve(self, request: web.Request) -> web.StreamResponse:
            if "bad" in (await request.json())["queries"]:
                return web.Response(status=422, text="bad query")
            return await super()._retrieve(request)

    async with Picky() as retriever, searcher(retriever.url) as client:
        good, bad, fine = await asyncio.gather(*map(client.search, ("good", "bad", "fine")))
    assert good.passages and fine.passages and bad.error is not None


async def test_equal_queries_in_flight_are_searched_once():
    async with FakeRetriever(trouble=lambda _: 0.2) as retriever, searcher(retriever.url) as client:
        results = await asyncio.gather(*(client.search("kenya") for _ in range(5)))
        assert retriever.queries == ["kenya"]
        await client.search("kenya")
    assert sorted(result.origin for result in results) == ["backend", *["shared"] * 4]
    assert len(retriever.queries) == 2  # without a cache nothing is kept


async def test_cancelling_a_shared_search_does_not_affect_other_callers():
    async with FakeRetriever(trouble=lambda _: 0.3) as retriever, searcher(retriever.url) as client:
        leaving = asyncio.create_task(client.search("kenya"))
        staying = asyncio.create_task(client.search("kenya"))
        await asyncio.sleep(0.1)
        leaving.cancel()
        assert (await staying).passages


async def test_passages_are_bounded():
    result = await search(FakeRetriever(documents=["t" * 10_000 + "\n" + "x" * 100_000]))
    assert len(result.passages[0].text) == MAX_TEXT and len(result.passages[0].title) < 1000


async def test_a_failing_retriever_is_logged_once_and_not_for_every_query(caplog):
    async with answer("x", 500) as retriever, searcher(retriever.url) as client:
        for number in range(5):
            await client.search(str(number))
    assert sum("a search failed" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("query", ["x" * 100_000, "\ud800half", "\x00"])
async def test_any_query_is_sent_in_a_form_that_servers_take(query):
    retriever = FakeRetriever()
    assert (await search(retriever, query=query)).passages
    (sent,) = retriever.queries
    assert len(sent) <= 2000 and sent.encode() and (sent == query or "\x00" not in query)


# ---- Keys ------------------------------------------------------------------------------------------------------------


async def test_the_key_is_sent_as_a_bearer_and_a_wrong_one_is_said_once_with_the_remedy(caplog):
    def check(request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization", "")
        return None if sent == "Bearer right" else web.Response(status=401, text=f"wrong key: {sent}")

    async with FakeRetriever(guard=check) as retriever:
        async with searcher(retriever.url, api_key="right") as client:
            assert (await client.search("kenya")).passages
        with caplog.at_level(logging.DEBUG):
            async with searcher(retriever.url, api_key="hunter2hunter2", retries=3) as client:
                results = [await client.search(str(number)) for number in range(10)]
    assert all(result.error is not None for result in results)
    assert "RETRIEVAL_API_KEY" in str(results[0].error)
    assert "hunter2" not in caplog.text + repr(results)  # though the server repeats it
    assert caplog.text.count("RETRIEVAL_API_KEY") == 1
    assert retriever.requests == 2  # the right one, and the wrong one once


@pytest.mark.parametrize("key", ["two\nlines", "carriage\rreturn", "a blank", "ümlaut", "\ufeffmarked"])
@pytest.mark.parametrize("variable", ["RETRIEVAL_API_KEY", "GOOGLE_API_KEY"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_quoted(variable, key):
    with pytest.raises(ConfigError, match=f"{variable} has invalid characters") as error:
        load_config({}, {"SEARCH_BACKEND": "local", variable: key}, None)
    assert key not in str(error.value)
    assert load_config({}, {"SEARCH_BACKEND": "local", variable: " key\n"}, None)
