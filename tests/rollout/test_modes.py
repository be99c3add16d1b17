"""The same trajectory gives the same Sample in every pair of modes; a router is believed only if its record agrees."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import PARAMS, make_sample, plugin, recorded, roll_out, timeless
from test_exact_tokens import strange_split

import generate_with_search
from demo.models import TOOL_TEMPLATE
from search_rollout.config import ConfigError
from search_rollout.engine.client import EngineClient
from search_rollout.protocols.tool_formats import FORMATS
from token_router.app import create_app
from token_router.token_trie import TokenTrie
from token_router.workers import Workers

TOKENIZER = tiny_tokenizer()
TOKENIZER.chat_template = TOOL_TEMPLATE.read_text(encoding="utf-8")
MESSAGES = [{"role": "system", "content": "Search."}, {"role": "user", "content": "What is the capital of Kenya?"}]
ROUTER_MODES = [("generate", "router_radix"), ("chat", "router_radix"), ("chat", "router_handler")]
CALL = '<tool_call>\n{"name": "search",  "arguments": {"queries": ["capital of Kenya", "Kenya"]}}\n</tool_call>'
SEARCHES = {
    "generate": ("<search>capital of Kenya</search>", "<search> </search>", "no action<|im_end|>"),
    "chat": (f"{CALL}<|im_end|>", f"{CALL}{CALL}<|im_end|>", "<tool_call>oops</tool_call><|im_end|>", "<think>"),
}
ANSWERS = {"generate": "<answer>Nairobi</answer>", "chat": "<answer>Nairobi</answer><|im_end|>"}


def script(api_mode: str, seed: int) -> list[Turn]:
    """A few turns in ids that no tokenizer would give, and an answer."""
    choose = random.Random(seed)
    texts = [choose.choice(SEARCHES[api_mode]) for _ in range(choose.randint(0, 3))] + [ANSWERS[api_mode]]
    overshoot = choose.choice(["", "\n\n", " and"]) if api_mode == "generate" else ""
    thought = choose.choice(["<think>I need it.</think>\n", "", "<think>漢字 é</think>"])
    return [Turn(ids=strange_split(thought + text + overshoot, choose)) for text in texts]


@asynccontextmanager
async def router(engine_port: int, store: TokenTrie) -> AsyncIterator[int]:
    """A token router in front of an engine; its port."""
    workers = Workers()
    workers.add(f"http://127.0.0.1:{engine_port}")
    app = create_app(TOKENIZER, workers, store, tool_format=FORMATS["hermes"], max_body_bytes=2**24)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


async def roll(monkeypatch: pytest.MonkeyPatch, api: str, tracking: str, turns: list[Turn], **settings: Any) -> Any:
    """One rollout in these modes, with a router only where one is needed."""
    engine = FakeEngine(TOKENIZER, turns)
    params = {**PARAMS, "max_new_tokens": 200, "temperature": settings.pop("temperature", 0.8)}
    modes = {"llm_api_mode": api, "token_tracking_mode": tracking, **settings}
    prompt = list(MESSAGES) if api == "chat" else "What is the capital of Kenya?\n"
    async with plugin(monkeypatch, TOKENIZER, engine, FakeRetriever(), **modes) as (args, _):
        if tracking == "manual":
            return await roll_out(args, make_sample(prompt=prompt), params)
        async with router(engine.port, TokenTrie(100_000)) as args.sglang_router_port:
            return await roll_out(args, make_sample(prompt=prompt), params)


def fields(sample: Any) -> dict:
    """All that a Sample holds but the name and the clock of its rollout."""
    values = asdict(sample)
    values["metadata"]["search_r1"] = timeless(recorded(sample))
    values.pop("non_generation_time", None)
    return values


@pytest.mark.parametrize("loss_mask", [{"loss_mask_mode": "strict"}, {"loss_mask_mode": "simple", "temperature": 1.0}])
@pytest.mark.parametrize(("api", "tracking"), ROUTER_MODES)
async def test_every_mode_gives_the_sample_that_manual_tracking_gives(monkeypatch, api, tracking, loss_mask):
    for seed in range(12):
        manual = await roll(monkeypatch, api, "manual", script(api, seed), **loss_mask)
        routed = await roll(monkeypatch, api, tracking, script(api, seed), **loss_mask)
        assert fields(routed) == fields(manual)
        assert not recorded(routed).discarded


@pytest.mark.parametrize(("api", "tracking"), ROUTER_MODES)
async def test_without_log_probs_the_modes_agree_too(monkeypatch, api, tracking):
    manual = await roll(monkeypatch, api, "manual", script(api, 1), track_log_probs=False)
    routed = await roll(monkeypatch, api, tracking, script(api, 1), track_log_probs=False)
    assert fields(routed) == fields(manual)
    assert routed.rollout_log_probs is None


@pytest.mark.parametrize(("api", "tracking"), ROUTER_MODES)
@pytest.mark.parametrize("fault", ["tokens", "loss_mask", "rollout_logp", "length", "nothing"])
async def test_a_record_that_differs_from_the_replies_discards_the_sample(monkeypatch, caplog, api, tracking, fault):
    def falsify(record: dict) -> dict:
        match fault:
            case "tokens":
                record["tokens"][-1] += 1
            case "loss_mask":
                record["loss_mask"][-1] = 0
            case "rollout_logp":
                record["rollout_logp"][-1] -= 0.01
            case "length":
                record["tokens"].pop()
            case "nothing":
                return {}
        return record

    post = EngineClient.post

    async def lying(self: Any, path: str, body: Any, headers: Any) -> Any:
        answer = await post(self, path, body, headers)
        return falsify(answer) if answer["tokens"] else answer

    monkeypatch.setattr(EngineClient, "post", lying)
    sample = await roll(monkeypatch, api, tracking, script(api, 2))
    assert recorded(sample).stop.value == "router_mismatch"
    assert recorded(sample).discarded and sample.loss_mask == [0]
    assert "record" in caplog.text


@pytest.mark.parametrize(("api", "tracking"), ROUTER_MODES)
async def test_a_router_without_records_is_one_clear_error(monkeypatch, api, tracking):
    engine = FakeEngine(TOKENIZER, script(api, 1))
    modes = {"llm_api_mode": api, "token_tracking_mode": tracking}
    async with plugin(monkeypatch, TOKENIZER, engine, **modes) as (args, _):
        with pytest.raises(ConfigError, match=r"TOKEN_TRACKING_MODE=.*token_router"):
            await generate_with_search.generate(args, make_sample(prompt=list(MESSAGES)), dict(PARAMS))


async def test_a_router_that_reads_other_ids_than_it_says_is_noticed_at_once(monkeypatch):
    turns = [Turn(ids=TOKENIZER.encode("<search>Kenya</search>")), Turn(ids=TOKENIZER.encode(ANSWERS["generate"]))]
    engine = FakeEngine(TOKENIZER, turns)

    @web.middleware
    async def drop_one_id(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        body = response.body.replace(b'"prompt_tokens": ', b'"prompt_tokens": 1') if response.body else None
        return web.Response(body=body, content_type="application/json", status=response.status)

    async with plugin(monkeypatch, TOKENIZER, engine, token_tracking_mode="router_radix") as (args, _):
        workers = Workers()
        workers.add(f"http://127.0.0.1:{engine.port}")
        app = create_app(TOKENIZER, workers, TokenTrie(10_000), tool_format=None, max_body_bytes=2**24)
        app.middlewares.append(drop_one_id)
        async with TestServer(app) as server:
            args.sglang_router_port = server.port
            sample = await roll_out(args, make_sample())
    assert recorded(sample).stop.value == "router_mismatch"


async def test_siblings_that_say_the_same_in_other_ids_keep_their_own(monkeypatch):
    choose = random.Random(5)
    texts = ["<think>I need it.</think><search>capital of Kenya</search>", "<answer>Nairobi</answer>"]
    said: dict[str, list[Turn]] = {}

    def siblings(request: dict) -> Turn:
        name = engine.headers[-1]["X-Search-R1-Trajectory"]
        if name not in said:
            said[name] = [Turn(ids=strange_split(text, choose)) for text in texts]
        return said[name].pop(0)

    engine = FakeEngine(TOKENIZER, siblings)
    async with (
        plugin(monkeypatch, TOKENIZER, engine, token_tracking_mode="router_radix") as (args, _),
        router(engine.port, TokenTrie(100_000)) as args.sglang_router_port,
    ):
        samples = [await roll_out(args, make_sample()) for _ in range(8)]
    assert len({tuple(sample.tokens) for sample in samples}) == 8
    assert len({sample.response for sample in samples}) == 1
    assert not any(recorded(sample).discarded for sample in samples)
