"""Running the plugin's hooks against the fakes, and what must hold of every Sample afterwards."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeEngine, FakeGenerateState, FakeRetriever, slime_args
from slime.utils.types import Sample

import generate_with_search
from search_rollout.samples.record import RolloutRecord, record_of

PARAMS = {
    "temperature": 0.8,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 64,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}
SEARCH = "<think>I need the capital.</think>\n<search>capital of Kenya</search>"
ANSWER = "<think>It is Nairobi.</think>\n<answer>Nairobi</answer>"


def make_sample(**changes: Any) -> Sample:
    """A question whose gold answer is Nairobi."""
    values = {
        "index": 0,
        "prompt": "What is the capital of Kenya?\n",
        "label": {"ground_truth": {"target": ["Nairobi"]}},
    }
    return Sample(**(values | changes))


@asynccontextmanager
async def plugin(
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Any,
    engine: FakeEngine,
    retriever: FakeRetriever | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Any, FakeGenerateState]]:
    """slime's args and state for a plugin between a fake engine and a fake retriever; closes its connections."""
    state = FakeGenerateState(tokenizer)
    monkeypatch.setattr(generate_with_search, "GenerateState", lambda args: state)
    async with engine, retriever or FakeRetriever() as search:
        args = slime_args(**({"sglang_router_port": engine.port, "retrieval_server_url": search.url} | settings))
        try:
            yield args, state
        finally:
            await generate_with_search.close()


async def roll_out(args: Any, sample: Sample, params: dict | None = None, evaluation: bool = False) -> Sample:
    """generate, then the reward, as slime calls them."""
    sample = await generate_with_search.generate(args, sample, dict(params or PARAMS), evaluation=evaluation)
    if sample.status is not Sample.Status.ABORTED and sample.reward is None:
        sample.reward = await generate_with_search.reward_func(args, sample)
    check_aligned(sample)
    return sample


def check_aligned(sample: Sample) -> None:
    """What slime asserts of a sample, and what training relies on."""
    assert isinstance(sample.response, str)
    assert sample.loss_mask is not None and len(sample.loss_mask) == sample.response_length
    assert set(sample.loss_mask) <= {0, 1}
    assert len(sample.tokens) > sample.response_length or sample.status is Sample.Status.ABORTED
    assert all(type(token) is int for token in sample.tokens)
    if sample.rollout_log_probs is not None:
        assert len(sample.rollout_log_probs) == sample.response_length
    if sample.status is not Sample.Status.ABORTED:
        assert sample.response_length > 0
        assert 0.0 <= sample.reward <= 1.0
    if recorded(sample).discarded:
        assert sample.loss_mask == [0] and sample.reward == 0.0 and sample.remove_sample


def recorded(sample: Sample) -> RolloutRecord:
    """What the plugin recorded of the rollout."""
    record = record_of(sample)
    assert record is not None
    return record


def texts(sample: Sample, tokenizer: Any) -> list[str]:
    """The text of each stretch of the response."""
    ids = iter(response_ids(sample))
    return [tokenizer.decode(list(itertools.islice(ids, span.tokens))) for span in recorded(sample).spans]


def mistakes(sample: Sample) -> Counter[str]:
    """Tool calls that could not be run, by kind."""
    return Counter(mistake for turn in recorded(sample).turns for mistake in turn.mistakes)


def timeless(record: RolloutRecord) -> RolloutRecord:
    """The record of a rollout without what no two rollouts share: its name, and how long it waited."""
    turns = [replace(turn, results=[replace(result, seconds=0.0) for result in turn.results]) for turn in record.turns]
    return replace(record, trajectory_id="", search_seconds=0.0, turns=turns)


def response_ids(sample: Sample) -> list[int]:
    """The response's tokens."""
    return sample.tokens[len(sample.tokens) - sample.response_length :]
