"""What becomes of a sample whose search failed: the model is told, or the sample is discarded."""

import asyncio
import itertools
import logging

import pytest
from aiohttp import web
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import ANSWER, SEARCH, make_sample, plugin, recorded, roll_out
from slime.utils.types import Sample

import generate_with_search
from search_rollout.protocols.observation import UNAVAILABLE

TOKENIZER = tiny_tokenizer()


def scripted(*texts: str) -> FakeEngine:
    return FakeEngine(TOKENIZER, [Turn(text) for text in texts])


def failing(status: int, text: str = "trouble at the backend") -> FakeRetriever:
    return FakeRetriever(trouble=lambda _: web.Response(status=status, text=text))


async def test_observe_gives_the_model_a_neutral_sentence_and_records_the_cause(monkeypatch):
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH, ANSWER), failing(500)) as (args, _):
        sample = await roll_out(args, make_sample())
    assert f"<information>{UNAVAILABLE}</information>" in sample.response
    assert "trouble at the backend" not in sample.response
    assert "trouble at the backend" in recorded(sample).searches[0].error
    assert sample.reward == 1.0 and recorded(sample).search_counts == {
        "queries": 1,
        "backend": 0,
        "cache": 0,
        "shared": 0,
        "failed": 1,
    }


async def test_discard_drops_the_sample_at_its_first_failed_search(monkeypatch):
    engine = scripted(SEARCH, SEARCH, ANSWER)
    trouble = FakeRetriever(trouble=lambda number: web.Response(status=500) if number else None)
    settings = {"search_failure_mode": "discard"}
    async with plugin(monkeypatch, TOKENIZER, engine, trouble, **settings) as (args, _):
        sample = await roll_out(args, make_sample())  # checks the form of a discarded sample
    assert recorded(sample).discarded and recorded(sample).stop.value == "search_failed"
    assert recorded(sample).search_counts["failed"] == 1 and recorded(sample).search_counts["backend"] == 1
    assert len(engine.requests) == 2


async def test_a_wrong_key_is_said_once_for_many_rollouts(monkeypatch, caplog):
    engine = FakeEngine(TOKENIZER, lambda request: Turn(SEARCH if len(request["input_ids"]) < 30 else ANSWER))
    settings = {"retrieval_api_key": "hunter2hunter2"}
    retriever = failing(401, "Bearer hunter2hunter2 is wrong")
    with caplog.at_level(logging.DEBUG):
        async with plugin(monkeypatch, TOKENIZER, engine, retriever, **settings) as (args, _):
            samples = [await roll_out(args, make_sample(index=number)) for number in range(5)]
            assert "hunter2" not in repr(generate_with_search._config(args))
    assert caplog.text.count("Set RETRIEVAL_API_KEY") == 1 and retriever.requests == 1
    assert "hunter2" not in caplog.text + repr([sample.to_dict() for sample in samples])


async def test_a_cache_that_cannot_be_opened_is_a_wrong_setting(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x" * 5000)
    for path in (tmp_path, tmp_path / "file"):
        async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER), search_cache=str(path)) as (args, _):
            with pytest.raises(ValueError, match="SEARCH_CACHE"):
                await roll_out(args, make_sample())


async def test_the_same_run_twice_with_the_cache_is_the_same_without_the_network(monkeypatch, tmp_path):
    def searching() -> FakeEngine:
        def turn(request: dict) -> Turn:
            text = TOKENIZER.decode(request["input_ids"])
            number, asked = text.partition(":")[0], text.count("<information>")
            if asked == 3:
                return Turn(ANSWER)
            return Turn(f"<think>x</think><search>{asked} of {int(number) % 10}</search>")

        return FakeEngine(TOKENIZER, turn)

    documents = itertools.count()

    class Changing(FakeRetriever):
        """Never says the same twice, and has trouble with some queries."""

        async def _retrieve(self, request: web.Request) -> web.StreamResponse:
            if any(query.endswith("5") for query in (await request.json())["queries"]):
                return web.Response(status=422)
            self.documents = [f'"Page {next(documents)}"\nIt says {next(documents)}.']
            return await super()._retrieve(request)

    async def run(mode: str, retriever: FakeRetriever) -> list[Sample]:
        settings = {"search_cache": str(tmp_path / "cache.db"), "search_cache_mode": mode}
        async with plugin(monkeypatch, TOKENIZER, searching(), retriever, **settings) as (args, _):
            samples = [make_sample(index=n, prompt=f"{n}: What is the capital of Kenya?\n") for n in range(30)]
            return await asyncio.gather(*(roll_out(args, sample) for sample in samples))

    first_run = await run("readwrite", recording := Changing())
    replayed = await run("replay", untouched := FakeRetriever())
    assert recording.requests > 0 and untouched.requests == 0
    assert any("It says" in sample.response for sample in first_run)
    assert any(UNAVAILABLE in sample.response for sample in first_run)
    for first, second in zip(first_run, replayed, strict=True):
        assert recorded(first).spans == recorded(second).spans
        assert (first.tokens, first.loss_mask) == (second.tokens, second.loss_mask)


async def test_a_query_missing_from_a_recording_is_reported_without_an_exception(monkeypatch, tmp_path, caplog):
    settings = {"search_cache": str(tmp_path / "cache.db")}
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER), **settings) as (args, _):
        await roll_out(args, make_sample())
    settings["search_cache_mode"] = "replay"
    retriever = FakeRetriever()
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH, ANSWER), retriever, **settings) as (args, _):
        sample = await roll_out(args, make_sample())
    assert UNAVAILABLE in sample.response and retriever.requests == 0
    assert "has no answer to 'capital of Kenya'" in caplog.text
