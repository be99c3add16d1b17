"""Full pages: the page's passage where there is one, else the snippet; and the processes that read pages."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from search_helpers import google_search
from web_fakes import KEY, FakeGoogle, FakePage, FakeWeb, article, redirect, zip_bomb

from search_rollout.config import ConfigError
from search_rollout.search import web_pages
from search_rollout.search.page_fetcher import Page, PageFailed, PageLimits
from search_rollout.search.passage import Passage
from search_rollout.search.web_pages import PageReaders, WebPages

SNIPPET = "The capital of Kenya is Nairobi"
TEXT = "It lies on a plateau at 1,795 metres above the sea."
GOOD = FakePage(article("Kenya is a country in East Africa.", f"{SNIPPET}. {TEXT}", "It has many parks."))
GBK = "内罗毕是肯尼亚的首都，也是该国最大的城市。"


@asynccontextmanager
async def pages_of(web: FakeWeb, *, is_allowed: Any = lambda _: True, **limits: Any) -> AsyncIterator[WebPages]:
    pages = WebPages(PageLimits(**({"ports": (web.port,)} | limits)), is_allowed=is_allowed)
    try:
        yield pages
    finally:
        await pages.close()


async def test_each_result_gets_its_own_pages_passage_or_keeps_its_snippet():
    def result(path: str | None, snippet: str | None) -> dict:
        return {
            "title": f"title {path}",
            **({} if path is None else {"link": web.url(path)}),
            **({} if snippet is None else {"snippet": snippet}),
        }

    web = FakeWeb(
        {
            "/good": GOOD,
            "/login": FakePage(article("Please log in to go on. " * 9)),
            "/bomb": zip_bomb(50),
            "/gbk": FakePage(article(GBK * 3).encode("gb2312"), type="text/html; charset=gb2312"),
            "/moved": redirect("http://127.0.0.2:{port}/good"),
            "/pdf": FakePage(b"%PDF", type="application/pdf"),
            "/nosnippet": GOOD,
            "/nothing": FakePage(article("Please log in. ")),
        }
    )
    async with web, FakeGoogle() as google:
        snippets = {"/login": "s1", "/bomb": "s2", "/moved": "s4", "/pdf": "s5", "/404": "s6", None: "s7"}
        google.results = {
            "organic": [
                result("/good", SNIPPET),
                *(result(path, text) for path, text in snippets.items()),
                result("/gbk", "肯尼亚的首都"),
                result("/nosnippet", None),
                result("/nothing", None),
            ]
        }
        async with pages_of(web, is_allowed=lambda address: str(address) == "127.0.0.1") as pages:
            search = google_search(google.url, topk=20, pages=pages)
            found = {passage.title: passage.text for passage in await search.find("capital of Kenya")}
            assert search.namespace.endswith("pages")
            await search.close()
    for path in ("/good", "/nosnippet"):
        text = found.pop(f"title {path}")
        assert SNIPPET in text and TEXT in text and "<" not in text and "MENU" not in text
    assert GBK in found.pop("title /gbk").replace(" ", "")
    assert found == {f"title {path}": text for path, text in snippets.items()}


async def test_loopback_is_refused_by_default():
    async with FakeWeb({"/": GOOD}) as web:
        pages = WebPages(PageLimits(ports=(web.port,)))
        assert await pages.passage(web.url("/"), SNIPPET) is None
        await pages.close()
    assert web.requests == []


async def test_a_page_that_takes_too_long_to_read_costs_its_time_and_the_worker_not_the_search(monkeypatch):
    async with FakeWeb({"/": GOOD}) as web, pages_of(web, seconds=1.0) as pages:
        ask, workers = web_pages._ask, []

        async def stuck(worker: Any, page: Page, hint: str) -> dict:
            workers.append(worker)
            await asyncio.sleep(60)
            return await ask(worker, page, hint)

        monkeypatch.setattr(web_pages, "_ask", stuck)
        began = time.monotonic()
        assert await pages.passage(web.url("/"), SNIPPET) is None
        assert time.monotonic() - began < 30.0
    assert workers[0].returncode is not None


async def test_a_worker_that_dies_is_replaced():
    readers = PageReaders(1)
    page = Page(article(f"{SNIPPET}. " * 5).encode(), None)
    assert SNIPPET in (await readers.read(page, SNIPPET) or "")
    readers._idle[0].kill()
    with pytest.raises(PageFailed, match="ended the process"):
        await readers.read(page, SNIPPET)
    assert SNIPPET in (await readers.read(page, SNIPPET) or "")
    await readers.close()


async def test_a_worker_has_no_keys_and_ends_with_its_input(monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    worker = await web_pages._start()
    environment = Path(f"/proc/{worker.pid}/environ").read_bytes()  # noqa: ASYNC240
    assert b"PYTHONPATH" in environment and KEY.encode() not in environment
    assert worker.stdin is not None
    worker.stdin.close()
    assert await asyncio.wait_for(worker.wait(), 20) == 0


async def test_that_no_page_can_be_read_is_said_once(caplog):
    caplog.set_level(logging.WARNING)
    async with FakeWeb({}) as web, pages_of(web) as pages:
        for _ in range(web_pages.TOLD_AFTER + 5):
            assert await pages.passage(web.url("/"), "x") is None
    assert caplog.text.count("none of the first 20 could be read") == 1 and "404" in caplog.text


def test_missing_packages_are_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install trafilatura chardet"):
        WebPages()


async def test_snippets_need_neither_pages_nor_their_packages(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    async with FakeGoogle() as google:
        search = google_search(google.url, topk=1)
        assert await search.find("x") == [Passage("Kenya / Capital", "The capital of Kenya is Nairobi.")]
        await search.close()
