"""Preflight with --engine: what it asks of a running engine, and one real rollout by the plugin's hooks."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from evaluation_helpers import Geographer, fresh_state, serving  # noqa: F401
from fakes import FakeEngine, Turn
from preflight_helpers import Machine

from preflight.findings import Finding
from preflight.groups import run_groups
from preflight.setup import Setup


class Storyteller(Geographer):
    """Also goes on with a story, and heeds no stop string in it."""

    def __call__(self, request: dict) -> Turn:
        if self.tokenizer.decode(request["input_ids"]).startswith("Once upon a time"):
            return Turn("think of a search, and then of an answer.")
        return super().__call__(request)


class Stopping(Storyteller):
    """Ends each reply with the first stop string in it, as an engine must."""

    def __call__(self, request: dict) -> Turn:
        turn = super().__call__(request)
        ids, stops = self.tokenizer.encode(turn.text), request["sampling_params"]["stop"]
        ends = (n for n in range(1, len(ids) + 1) if any(stop in self.tokenizer.decode(ids[:n]) for stop in stops))
        return replace(turn, ids=ids[: next(ends, len(ids))])


def engine_findings(machine: Machine, url: str) -> dict[str, Finding]:
    return {row.name: row.finding for row in run_groups(Setup(machine.environment, url), ["engine"])}


def engine_rows(machine: Machine, engine: FakeEngine, retriever_url: str) -> dict[str, Finding]:
    machine.environment |= {"RETRIEVAL_SERVER_URL": retriever_url, "SEARCH_R1_SEARCH_RETRIES": "0"}
    return engine_findings(machine, f"http://127.0.0.1:{engine.port}")


@pytest.mark.usefixtures("fresh_state")
def test_a_rollout_on_a_running_engine_reports_its_turns_and_reward(machine: Machine) -> None:
    with serving(Stopping()) as (engine, retriever):
        found = engine_rows(machine, engine, retriever.url)
        assert [finding.mark for finding in found.values()] == ["✓", "–", "–", "✓", "✓"], found
        said = found["one rollout"].found
        assert "answered; turns: 2, searches: 1, reward: 1.00" in said and retriever.queries == ["capital of Kenya"]
        trained = sum(map(len, engine.sampled[-2:]))
        assert f"{trained} of " in said
        assert engine.requests[-1]["sampling_params"]["temperature"] == 0.8


async def test_an_engine_of_another_model_or_with_a_short_context_is_found(machine: Machine) -> None:
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "max_model_len": 9221}]})  # 9216 and 6 are needed

    async def generate(request: web.Request) -> web.Response:
        ids = [ord(character) for character in (await request.json()).get("text", "")]
        meta = {"finish_reason": {"type": "length"}, "output_token_logprobs": [[-0.5, 1, None]]}
        meta["input_token_logprobs"] = [[None, one, None] for one in ids]
        return web.json_response({"text": "", "output_ids": [1], "meta_info": meta})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/generate", generate)])
    async with TestServer(app) as server:
        rows = await asyncio.to_thread(engine_findings, machine, f"http://127.0.0.1:{server.port}")
    assert rows["context length"].mark == rows["vocabulary"].mark == "✗"
    assert "--context-length 9222 or more, or lower max_context_length to 9215" in rows["context length"].remedy
    assert "start the engine on HF_CHECKPOINT" in rows["vocabulary"].remedy


@pytest.mark.usefixtures("fresh_state")
def test_an_engine_that_ignores_stop_strings_is_found(machine: Machine) -> None:
    with serving(Storyteller()) as (engine, retriever):
        finding = engine_rows(machine, engine, retriever.url)["stop strings"]
        assert any(request["sampling_params"]["temperature"] == 0 for request in engine.requests)
    assert finding.mark == "✗" and "ignores `stop`" in finding.found and "</search>" in finding.remedy


@pytest.mark.usefixtures("fresh_state")
def test_a_failing_engine_is_reported_with_its_message(machine: Machine) -> None:
    with serving(lambda request: Turn(status=400, body={"error": "no such model"})) as (engine, retriever):
        found = engine_rows(machine, engine, retriever.url)["one rollout"]
    assert found.mark == "✗" and "engine_failed" in found.found and "no such model" in found.found


@pytest.mark.usefixtures("fresh_state")
def test_a_rollout_without_a_search_is_a_warning(machine: Machine) -> None:
    with serving(Stopping(searches=False)) as (engine, retriever):
        assert engine_rows(machine, engine, retriever.url)["one rollout"].mark == "!"


@pytest.mark.usefixtures("fresh_state")
def test_a_search_that_fails_in_the_rollout_is_reported_with_its_reason(machine: Machine) -> None:
    with serving(Stopping()) as (engine, _):
        finding = engine_rows(machine, engine, "http://127.0.0.1:1")["one rollout"]
    assert finding.mark == "✗" and "searches failed: 1, such as http://127.0.0.1:1/retrieve" in finding.found
