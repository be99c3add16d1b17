"""Chat rollouts with every family of models, in all tracking modes, over an engine with a split of its own."""

import random
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from fakes import FakeEngine, FakeRetriever, Turn
from real_tokenizers import MODELS, small_tokenizer
from rollout_helpers import PARAMS, make_sample, plugin, response_ids, roll_out
from test_modes import fields

from search_rollout.protocols.tool_formats import tool_format
from token_router.app import create_app
from token_router.token_trie import TokenTrie
from token_router.workers import Workers

QUERIES = ["capital of Kenya", 'the "City in the Sun"']
CALLS = {
    "hermes": '<tool_call>\n{"name": "search",  "arguments": {"queries": %s}}\n</tool_call>',
    "qwen_xml": "<tool_call>\n<function=search>\n<parameter=queries>\n%s\n</parameter>\n</function>\n</tool_call>",
    "llama3": '{"name": "search", "parameters": {"queries": %s}}',
    "mistral": '[TOOL_CALLS][{"name": "search",  "arguments": {"queries": %s}}]',
    "deepseek": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{"queries": %s}<｜tool▁call▁end｜>',
    "glm": "<tool_call>search\n<arg_key>queries</arg_key>\n<arg_value>%s</arg_value>\n</tool_call>",
    "pythonic": "[search(queries=%s)]",
}
LISTED = '["capital of Kenya",  "the \\"City in the Sun\\""]'
MESSAGES = [{"role": "user", "content": "What is the capital of Kenya?"}]


def split(tokenizer: Any, text: str, choose: random.Random) -> list[int]:
    """Ids that decode to the text, half of them cut into single bytes where the tokenizer would merge."""
    ids: list[int] = []
    for token in tokenizer.encode(text):
        piece = tokenizer.convert_ids_to_tokens(token)
        broken = token not in tokenizer.added_tokens_decoder and choose.random() < 0.5
        ids += [tokenizer.convert_tokens_to_ids(symbol) for symbol in piece] if broken else [token]
    assert tokenizer.decode(ids) == text
    return ids


async def rolled_out(monkeypatch, tokenizer: Any, turns: list[list[int]], tracking: str) -> tuple[Any, FakeEngine]:
    """The sample, and the engine with what it was asked and what it sampled."""
    retriever = FakeRetriever()
    engine = FakeEngine(tokenizer, [Turn(ids=ids) for ids in turns])
    modes = {"llm_api_mode": "chat", "token_tracking_mode": tracking}
    params = {**PARAMS, "max_new_tokens": 300}
    async with plugin(monkeypatch, tokenizer, engine, retriever, **modes) as (args, _):
        workers = Workers()
        workers.add(f"http://127.0.0.1:{engine.port}")
        app = create_app(
            tokenizer, workers, TokenTrie(10_000), tool_format=tool_format(tokenizer), max_body_bytes=2**24
        )
        async with TestServer(app) as server:
            if tracking != "manual":
                args.sglang_router_port = server.port
            sample = await roll_out(args, make_sample(prompt=list(MESSAGES)), params)
    assert sorted(retriever.queries) == sorted(2 * QUERIES)
    return sample, engine


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.family != "none"])
async def test_a_rollout_has_the_engines_ids_in_every_tracking_mode(monkeypatch, name):
    tokenizer, choose = small_tokenizer(name), random.Random(name)
    one = CALLS[MODELS[name].family] % LISTED
    end = "<|observation|>" if MODELS[name].family == "glm" else tokenizer.eos_token
    opened = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True).rstrip()
    thought = "I need it.</think>\n" if opened.endswith("<think>") else "<think>I need it.</think>\n"
    answer = f"{thought}<answer>Nairobi</answer>" + (
        "<|user|>" if MODELS[name].family == "glm" else tokenizer.eos_token
    )
    turns = [split(tokenizer, text, choose) for text in (f"{thought}{one}{end}", f"{thought}{one}{end}", answer)]
    samples = []
    for tracking in ("manual", "router_radix", "router_handler"):
        sample, engine = await rolled_out(monkeypatch, tokenizer, turns, tracking)
        ids, mask = response_ids(sample), sample.loss_mask
        prompt = len(sample.tokens) - len(ids)
        for request, sampled in zip(engine.requests, engine.sampled, strict=True):
            start = len(request["input_ids"]) - prompt
            assert sample.tokens[: prompt + start] == request["input_ids"]
            assert ids[start : start + len(sampled)] == sampled and mask[start : start + len(sampled)] == [1] * len(
                sampled
            )
        assert sum(mask) == sum(map(len, turns)) and engine.sampled == turns
        samples.append(fields(sample))
    assert samples[0] == samples[1] == samples[2]
