"""The client of the results API: what it sends, what it finds, and each trouble by its name; the key never shows."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from search_helpers import google_search
from web_fakes import KEY, FakeGoogle, cut, json_error, no_credits

from google_search_server import GoogleSearch
from search_rollout.config import ConfigError
from search_rollout.http_client import RequestFailed, ServiceRefused, TransientFailure
from search_rollout.search.passage import Passage
from search_rollout.search.searcher import Searcher

RESULTS = {"organic": [{"title": f"t{n}", "link": f"http://h/{n}", "snippet": f"s{n}"} for n in range(20)]}


@asynccontextmanager
async def client(google: FakeGoogle, **settings: Any) -> AsyncIterator[GoogleSearch]:
    async with google:
        search = google_search(google.url, **settings)
        try:
            yield search
        finally:
            await search.close()


async def failure_of(google: FakeGoogle, **settings: Any) -> RequestFailed:
    async with client(google, **settings) as search:
        with pytest.raises(RequestFailed) as caught:
            await search.find("x")
    return caught.value


async def test_a_query_is_sent_with_its_locale_and_the_best_results_come_back():
    google = FakeGoogle(RESULTS)
    async with client(google, topk=2, google_gl="ke", google_hl="sw") as search:
        assert await search.find("mji") == [Passage("t0", "s0"), Passage("t1", "s1")]
    assert google.requests == [{"q": "mji", "num": 10, "gl": "ke", "hl": "sw"}]


async def test_results_without_text_are_replaced_by_the_next_ones():
    google = FakeGoogle({"organic": [{"title": "a", "link": "http://a/"}, {"snippet": "b"}, {"snippet": "c"}]})
    async with client(google, topk=2) as search:
        assert [passage.text for passage in await search.find("x")] == ["b", "c"]


async def test_more_than_ten_passages_are_asked_for_when_they_are_wanted():
    google = FakeGoogle(RESULTS)
    async with client(google, topk=15) as search:
        assert len(await search.find("x")) == 15
    assert google.requests[0]["num"] == 15


async def test_several_queries_run_at_once_and_do_not_mix():
    async def echo(_: int, request: web.Request) -> web.Response:
        query = (await request.json())["q"]
        await asyncio.sleep(0.2)
        return web.json_response({"organic": [{"snippet": f"about {query}"}]})

    async with client(FakeGoogle(trouble=echo)) as search:
        began = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(search.find(str(n)) for n in range(10)))
        assert asyncio.get_running_loop().time() - began < 1.5  # ten in a row take 2 s
    assert [passages[0].text for passages in found] == [f"about {n}" for n in range(10)]


async def test_no_results_are_not_an_error():
    async with client(FakeGoogle({"searchParameters": {}, "organic": []})) as search:
        assert await search.find("x") == []


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda: json_error(401, "Unauthorized."), ServiceRefused, "set GOOGLE_API_KEY"),
        (lambda: json_error(403, "Unauthorized."), ServiceRefused, "set GOOGLE_API_KEY"),
        (lambda: json_error(402, "Payment required"), ServiceRefused, "credits are used up"),
        (no_credits, ServiceRefused, "credits are used up"),
        (lambda: json_error(400, "Query not allowed: credit cards"), RequestFailed, "credit cards"),
        (lambda: json_error(429, "Too many requests", Retry_After="2"), TransientFailure, "429"),
        (lambda: json_error(500, "oh"), TransientFailure, "500"),
        (lambda: web.Response(text="<html>"), RequestFailed, "not JSON"),
        (lambda: web.json_response({"message": "hi"}), RequestFailed, "unexpected answer"),
    ],
)
async def test_each_failure_is_reported_by_its_kind(answer, kind, words):
    failure = await failure_of(FakeGoogle(trouble=lambda *_: answer()))
    assert type(failure) is kind and words in str(failure)
    if failure.status == 429:
        assert isinstance(failure, TransientFailure) and failure.retry_after_s == 2.0


async def test_a_cut_connection_and_a_slow_answer_may_get_better():
    assert isinstance(await failure_of(FakeGoogle(trouble=lambda _, request: cut(request))), TransientFailure)
    assert isinstance(await failure_of(FakeGoogle(trouble=lambda *_: 5.0), search_timeout_s=0.2), TransientFailure)


async def test_a_redirect_does_not_take_the_key_elsewhere():
    thief = FakeGoogle()
    async with thief:
        moved = web.Response(status=307, headers={"Location": thief.url})
        failure = await failure_of(FakeGoogle(trouble=lambda *_: moved))
    assert failure.status == 307 and thief.requests == []


def shown(error: BaseException) -> str:
    """Everything that a log or a crash would show of it."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


async def raw(request: web.Request, answer: bytes) -> web.Response:
    assert request.transport is not None
    request.transport.write(answer)  # type: ignore[attr-defined]
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize("status", [400, 403, 429, 500, 302])
async def test_a_key_that_the_server_repeats_is_in_no_exception_and_no_log(status, caplog):
    caplog.set_level(logging.DEBUG)
    google = FakeGoogle(trouble=lambda _, request: json_error(status, f"bad {dict(request.headers)}" + 300 * KEY))
    async with client(google) as search:
        searcher = Searcher([search], concurrency=1, timeout_s=1.0, retries=1)
        result = await searcher.search("x")
        with pytest.raises(RequestFailed) as caught:
            await search.find("x")
        await searcher.close()
    assert result.error and KEY not in result.error + shown(caught.value) + caplog.text
    assert KEY not in repr(search) + str(search) + search.namespace


async def test_a_key_in_an_answer_that_is_no_http_is_in_no_exception():
    garbage = f"HTTP/1.1 200 OK\r\n{KEY} is no header\r\n\r\n".encode()
    failure = await failure_of(FakeGoogle(trouble=lambda _, request: raw(request, garbage)))
    assert KEY not in shown(failure)


async def test_the_policy_repeats_a_burst_of_500s():
    google = FakeGoogle(trouble=lambda n, _: json_error(500, "oh") if n < 2 else None)
    async with client(google) as search:
        searcher = Searcher([search], concurrency=1, timeout_s=5.0, retries=3)
        result = await searcher.search("x")
        await searcher.close()
    assert result.passages and len(google.requests) == 3


async def test_a_wrong_key_is_said_once_with_its_remedy(caplog):
    google = FakeGoogle(key="another")
    async with client(google) as search:
        searcher = Searcher([search], concurrency=4, timeout_s=5.0, retries=3)
        for n in range(10):
            assert (await searcher.search(str(n))).error
        await searcher.close()
    assert caplog.text.count("set GOOGLE_API_KEY") == 1 and len(google.requests) == 1


def test_sources_are_interchangeable_only_with_the_same_locale_number_and_kind_of_text():
    names = {
        google_search(**({"url": "http://h/"} | settings)).namespace
        for settings in ({}, {"topk": 4}, {"google_gl": "ke"}, {"google_hl": "sw"}, {"url": "http://h/search"})
    }
    assert len(names) == 5 and google_search("http://h/", "other", topk=4).namespace in names


@pytest.mark.parametrize("key", ["", " ", "YOUR_API_KEY", "a b", "ключ", "a\nb"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key):
    with pytest.raises(ConfigError, match="GOOGLE_API_KEY") as error:
        google_search("http://h/", key)
    assert key == "YOUR_API_KEY" or len(key.strip()) == 0 or key not in str(error.value)


@pytest.mark.parametrize(
    "endpoint",
    ["google.serper.dev", "ftp://h/", "http://", "https:///x", "https://h/search?apiKey=s3cret", "https://u:s3cret@h/"],
)
def test_an_endpoint_that_cannot_be_one_is_refused_and_not_shown(endpoint):
    with pytest.raises(ConfigError, match="endpoint") as error:
        google_search(endpoint)
    assert "s3cret" not in str(error.value)
