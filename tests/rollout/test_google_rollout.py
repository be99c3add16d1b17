"""Whole rollouts with SEARCH_BACKEND=google: the passages in the model's context, and no key in what is left behind."""

import logging
from contextlib import asynccontextmanager

import pytest
from fakes import FakeEngine, Turn, tiny_tokenizer
from rollout_helpers import ANSWER, SEARCH, make_sample, plugin, recorded, roll_out
from web_fakes import KEY, FakeGoogle, json_error

import generate_with_search
from search_rollout.protocols.observation import UNAVAILABLE

TOKENIZER = tiny_tokenizer()


@asynccontextmanager
async def web_plugin(monkeypatch: pytest.MonkeyPatch, google: FakeGoogle, **settings: object):
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(ANSWER)])
    async with google:
        web = {"search_backend": "google", "google_api_key": KEY, "google_endpoint": google.url, "max_obs_tokens": 2000}
        async with plugin(monkeypatch, TOKENIZER, engine, **(web | settings)) as (args, _):
            yield args


async def test_a_rollout_reads_what_google_found(monkeypatch):
    google = FakeGoogle()
    async with web_plugin(monkeypatch, google) as args:
        sample = await roll_out(args, make_sample())
    assert google.requests == [{"q": "capital of Kenya", "num": 10, "gl": "us", "hl": "en"}]
    assert (
        'Doc 1(Title: "Kenya / Capital") The capital of Kenya is Nairobi.\nDoc 2(Title: "Nairobi")' in sample.response
    )
    assert sample.reward == 1.0


async def test_a_page_on_this_machine_is_never_read_and_the_snippet_is_used(monkeypatch):
    google = FakeGoogle()
    google.results = {"organic": [{"title": "t", "snippet": "the snippet"}]}
    async with web_plugin(monkeypatch, google, google_full_pages=True) as args:
        google.results["organic"][0]["link"] = google.url
        sample = await roll_out(args, make_sample())
    assert 'Doc 1(Title: "t") the snippet' in sample.response and len(google.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
async def test_a_failure_reaches_the_model_as_one_sentence_without_the_key(monkeypatch, status, caplog):
    caplog.set_level(logging.DEBUG)
    google = FakeGoogle(trouble=lambda _, request: json_error(status, f"no: {request.headers['X-API-KEY']}"))
    async with web_plugin(monkeypatch, google) as args:
        sample = await roll_out(args, make_sample())
        shown = repr(generate_with_search._config(args)) + repr(generate_with_search.search_usage())
    assert f"<information>{UNAVAILABLE}</information>" in sample.response
    assert str(status) in recorded(sample).searches[0].error
    assert KEY not in repr(sample) + repr(sample.metadata) + shown + caplog.text


async def test_a_recorded_rollout_is_replayed_without_a_key_and_without_a_call(monkeypatch, tmp_path):
    google, cache = FakeGoogle(), {"search_cache": str(tmp_path / "web.db")}
    async with web_plugin(monkeypatch, google, **cache) as args:
        recorded = await roll_out(args, make_sample())
    replay = {"search_cache_mode": "replay", "google_api_key": "YOUR_API_KEY"}
    async with web_plugin(monkeypatch, google, **cache, **replay) as args:
        replayed = await roll_out(args, make_sample())
    assert replayed.tokens == recorded.tokens and len(google.requests) == 1
