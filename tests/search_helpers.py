"""The search policy in front of retriever servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from web_fakes import KEY

from google_search_server import GoogleSearch
from search_rollout.config import SearchConfig
from search_rollout.search.cache import SearchCache
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.searcher import Searcher
from search_rollout.search.web_pages import WebPages


def google_search(url: str, key: str = KEY, *, pages: WebPages | None = None, **settings: Any) -> GoogleSearch:
    """The client of web search, with these settings."""
    values = {"search_timeout_s": 5.0} | settings
    config = SearchConfig(search_backend="google", google_api_key=key, google_endpoint=url, **values)
    return GoogleSearch(config, pages)


@asynccontextmanager
async def searcher(
    *urls: str,
    api_key: str = "",
    topk: int = 3,
    timeout_s: float = 5.0,
    cache: Path | None = None,
    max_age_s: float = 3600.0,
    replay: bool = False,
    **settings: Any,
) -> AsyncIterator[Searcher]:
    """A Searcher in front of these servers, closed at the end."""
    sources = [LocalRetriever(url, topk=topk, timeout_s=timeout_s, api_key=api_key) for url in urls]
    stored = None
    if cache is not None:
        stored = SearchCache(str(cache), sources[0].namespace, max_age_s=max_age_s, read_only=replay)
    values: dict[str, Any] = {"concurrency": 64, "retries": 0}
    made = Searcher(sources, timeout_s=timeout_s, cache=stored, replay=replay, **(values | settings))
    try:
        yield made
    finally:
        await made.close()
