"""Two thousand requests that schemathesis makes for the web search server: none is answered by a 500."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp.test_utils import TestServer
from fuzz_helpers import ANYTHING, in_thread, statuses
from search_helpers import google_search
from web_fakes import FakeGoogle

from google_search_server import create_app
from search_rollout.search.searcher import Searcher

pytestmark = pytest.mark.slow

BODY = {
    "type": "object",
    "properties": {
        "queries": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 8},
        "topk": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": 3}]},
        "return_scores": {"type": "boolean"},
        "other": ANYTHING,
    },
    "required": ["queries"],
}


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    async with FakeGoogle() as google:
        search = google_search(google.url)
        searcher = Searcher([search], concurrency=8, timeout_s=5.0, retries=0)
        async with TestServer(create_app(searcher, topk=3)) as server:
            yield f"http://127.0.0.1:{server.port}"


def test_no_request_makes_the_server_fail() -> None:
    with in_thread(served) as url:
        seen = statuses(url, "post", "/retrieve", BODY, 2000)
    assert sum(seen.values()) >= 1900 and seen[200] > 100 and seen[422] > 100, seen
