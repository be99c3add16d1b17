"""`audit-tokens` reports nothing on our rollouts, in every mode, with an engine that splits words strangely."""

import itertools
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from audit_helpers import audit, reported
from fakes import FakeEngine, FakeRetriever, Turn
from rollout_helpers import PARAMS, make_sample, plugin, roll_out
from test_chaos import documents, turn
from test_modes import ANSWERS, MESSAGES, TOKENIZER, router, script

from evaluation.audited import Reader
from evaluation.records import record_of
from search_rollout.config import VALID_PAIRS
from token_router.token_trie import TokenTrie

pytestmark = pytest.mark.model

MASKS = ("strict", "simple")
EACH = 1000 // (len(VALID_PAIRS) * len(MASKS))
READER = Reader(TOKENIZER)


@asynccontextmanager
async def running(monkeypatch: Any, api: str, tracking: str, **settings: Any) -> AsyncIterator[Any]:
    """slime's args for a plugin in these modes, whose engine plays another script for each trajectory."""
    seeds, scripts = itertools.count(), {}

    def next_turn(request: dict) -> Turn:
        name = engine.headers[-1]["X-Search-R1-Trajectory"]
        if name not in scripts:
            scripts[name] = iter(script(api, next(seeds)))
        return next(scripts[name], Turn(ANSWERS[api]))

    engine = FakeEngine(TOKENIZER, next_turn)
    modes = {"llm_api_mode": api, "token_tracking_mode": tracking, **settings}
    async with plugin(monkeypatch, TOKENIZER, engine, FakeRetriever(), **modes) as (args, _):
        if tracking == "manual":
            yield args
            return
        async with router(engine.port, TokenTrie(1_000_000)) as args.sglang_router_port:
            yield args


def dumped(sample: Any) -> dict[str, Any]:
    """As a line of JSON gives it back."""
    return json.loads(json.dumps(record_of(sample)))


@pytest.mark.parametrize("loss_mask", MASKS)
@pytest.mark.parametrize(("api", "tracking"), VALID_PAIRS)
async def test_nothing_is_reported_on_our_rollouts(monkeypatch, api, tracking, loss_mask):
    prompt: Any = list(MESSAGES) if api == "chat" else "What is the capital of Kenya?\n"
    params = {**PARAMS, "max_new_tokens": 200, "temperature": 1.0}
    async with running(monkeypatch, api, tracking, loss_mask_mode=loss_mask) as args:
        samples = [
            await roll_out(args, make_sample(prompt=prompt, index=number, group_index=number // 4), params)
            for number in range(EACH)
        ]
    findings = audit(*map(dumped, samples), reader=READER)
    assert reported(findings) == {}
    known = {name for name, finding in findings.items() if finding.mark == "✓"}
    assert known >= {"lengths", "vocabulary", "model tokens", "turn ends", "values", "present", "text of ids"}
    assert len({tuple(sample.tokens) for sample in samples}) > EACH // 4  # the scripts differ


async def test_nothing_is_reported_where_everything_goes_wrong(monkeypatch):
    choose, retriever = random.Random(3), FakeRetriever()
    retriever.trouble = lambda _: setattr(retriever, "documents", documents(choose))
    engine = FakeEngine(TOKENIZER, lambda _: turn(choose))
    settings = {"max_context_length": 2000, "max_obs_tokens": 200, "answer_reserve_tokens": 64}
    async with plugin(monkeypatch, TOKENIZER, engine, retriever, **settings) as (args, state):
        samples = []
        for number in range(200):
            state.aborted = number % 20 == 19
            samples.append(await roll_out(args, make_sample(index=number, group_index=number // 4), PARAMS))
    findings = audit(*map(dumped, samples), reader=READER)
    assert reported(findings, "✗") == {}
    assert reported(findings).keys() <= {"special tokens"}  # which this model may well spell out
