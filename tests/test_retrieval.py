"""The retriever's client: answers of every shape, and trouble of every kind as a sentence instead of an exception."""

import asyncio

import pytest
from aiohttp import web
from fakes import FakeRetriever

from search_rollout.retrieval import LocalRetriever, Passage, SearchResult


async def search(
    retriever: FakeRetriever, *, timeout_s: float = 5.0, retries: int = 0, url: str = "{}"
) -> SearchResult:
    async with retriever:
        client = LocalRetriever(url.format(retriever.url), topk=3, concurrency=4, timeout_s=timeout_s, retries=retries)
        try:
            return await client.search("kenya")
        finally:
            await client.close()


def answer(body: str, status: int = 200) -> FakeRetriever:
    return FakeRetriever(trouble=lambda _: web.Response(text=body, status=status))


async def test_passages_have_the_title_without_its_quotes():
    result = await search(FakeRetriever(documents=['"Kenya"\nIn Africa.\nEast.']))
    assert result.passages == [Passage("Kenya", "In Africa.\nEast.")] and result.error is None


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/retrieve"])
async def test_the_url_may_name_the_endpoint_or_not(url):
    assert (await search(FakeRetriever(), url=url)).passages


async def test_documents_without_scores_are_read_too():
    body = '{"result": [[{"id": "1", "contents": "\\"T\\"\\nx"}, {"title": "U", "text": "y"}]]}'
    assert (await search(answer(body))).passages == [Passage("T", "x"), Passage("U", "y")]


async def test_more_documents_than_asked_for_are_cut():
    body = '{"result": [[%s]]}' % ", ".join(['{"contents": "t\\nx"}'] * 9)  # noqa: UP031  (braces)
    assert len((await search(answer(body))).passages) == 3


async def test_no_documents_are_no_error():
    result = await search(answer('{"result": [[]]}'))
    assert result.passages == [] and result.error is None


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("nope", 200, "not JSON"),
        ("{}", 200, "shape"),
        ('{"result": 5}', 200, "shape"),
        ('{"result": [[{"document": 1}]]}', 200, "shape"),
        ('{"result": [[{"contents": 5}]]}', 200, "shape"),
        ("bad query", 422, "422: bad query"),
        ("loading", 503, "503: loading"),
    ],
)
async def test_trouble_becomes_a_sentence(body, status, words):
    result = await search(answer(body, status))
    assert result.passages == [] and result.error is not None and words in result.error


async def test_a_silent_server_is_left_after_the_timeout():
    result = await search(FakeRetriever(trouble=lambda _: 3.0), timeout_s=0.2)
    assert result.error is not None and result.seconds < 2.0


async def test_nobody_there_becomes_a_sentence_that_names_the_url():
    client = LocalRetriever("http://127.0.0.1:1", topk=3, concurrency=1, timeout_s=5, retries=1)
    result = await client.search("x")
    await client.close()
    assert result.error is not None and "http://127.0.0.1:1/retrieve" in result.error


async def test_what_can_get_better_is_tried_again():
    retriever = FakeRetriever(trouble=lambda n: web.Response(status=503) if n < 2 else None)
    assert (await search(retriever, retries=3)).passages
    assert len(retriever.queries) == 3


async def test_what_cannot_get_better_is_not():
    retriever = answer("bad", 400)
    await search(retriever, retries=3)
    assert len(retriever.queries) == 1


async def test_the_timeout_bounds_all_tries_together():
    retriever = FakeRetriever(trouble=lambda _: web.Response(status=503))
    result = await search(retriever, retries=100, timeout_s=1.0)
    assert result.seconds < 3.0


async def test_no_more_searches_than_allowed_run_at_once():
    running, most = 0, 0

    class Counting(FakeRetriever):
        async def _retrieve(self, request: web.Request) -> web.StreamResponse:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            return await super()._retrieve(request)

    async with Counting() as retriever:
        client = LocalRetriever(retriever.url, topk=3, concurrency=4, timeout_s=10, retries=0)
        results = await asyncio.gather(*(client.search(str(n)) for n in range(20)))
        await client.close()
    assert all(result.passages for result in results) and most == 4


async def test_a_failing_retriever_is_logged_once_and_not_for_every_query(caplog):
    async with answer("x", 500) as retriever:
        client = LocalRetriever(retriever.url, topk=3, concurrency=4, timeout_s=5, retries=0)
        for _ in range(5):
            await client.search("x")
        await client.close()
    assert sum("searches fail" in record.message for record in caplog.records) == 1
