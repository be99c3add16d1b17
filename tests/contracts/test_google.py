"""The stand-in of the results API against the real one: both are asked the same.

The real one costs a credit or two: SERPER_API_KEY=... python -m pytest tests/contracts/test_google.py
"""

import os
from collections.abc import AsyncIterator

import pytest
from search_helpers import google_search
from web_fakes import KEY, FakeGoogle

from search_rollout.config import SearchConfig
from search_rollout.http_client import JsonClient, ServiceRefused

REAL_KEY = os.environ.get("SERPER_API_KEY", "")


@pytest.fixture(params=["stand-in", "real"])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """Endpoint and key."""
    if request.param == "real":
        if not REAL_KEY:
            pytest.skip("no SERPER_API_KEY, so only the stand-in was asked")
        yield SearchConfig.google_endpoint, REAL_KEY
    else:
        async with FakeGoogle() as google:
            yield google.url, KEY


async def test_an_answer_has_organic_results_with_title_link_and_snippet(api):
    endpoint, key = api
    client = JsonClient(endpoint, timeout_s=20, retries=0, pause_s=0.0)
    answer = await client.post("", {"q": "capital of Kenya", "num": 10}, {"X-API-KEY": key})
    await client.close()
    assert "searchParameters" in answer and answer["organic"]
    assert all(isinstance(result["title"], str) and isinstance(result["link"], str) for result in answer["organic"])
    assert any(isinstance(result.get("snippet"), str) for result in answer["organic"])


async def test_the_clients_passages_name_the_capital(api):
    search = google_search(*api)
    found = await search.find("capital of Kenya")
    await search.close()
    assert 1 <= len(found) <= 3 and any("Nairobi" in passage.text for passage in found)


async def test_a_wrong_key_is_refused(api):
    search = google_search(api[0], "0" * 40)
    with pytest.raises(ServiceRefused, match="set GOOGLE_API_KEY"):
        await search.find("x")
    await search.close()
