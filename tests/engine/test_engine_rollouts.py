"""The plugin against real engines over a real model: what stands in a Sample is what the engine read and sampled.

What can differ between modes is tested in all of MODES, the rest in one. A mode is made of `question_in`, what slime
would hand over as a prompt, and `entrance`, what stands between the plugin and the engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from demo_helpers import plain_log_probs
from engine_helpers import (
    CONTEXT,
    PATTERN,
    SLIME_PARAMS,
    Call,
    EngineUnderTest,
    Figures,
    Recorder,
    assert_same_but_for_ties,
    log_probs_of,
)
from fakes import FakeGenerateState, FakeRetriever, slime_args
from rollout_helpers import check_aligned, make_sample, recorded, response_ids
from router_fakes import router
from slime.utils.types import Sample

import generate_with_search
from demo.models import TOOL_TEMPLATE
from search_rollout.config import VALID_PAIRS

MODES = list(VALID_PAIRS)  # LLM_API_MODE, TOKEN_TRACKING_MODE
one_mode = pytest.mark.parametrize("mode", [("generate", "manual")], ids=["generate+manual"], indirect=True)
CAPITALS = {"Kenya": "Nairobi", "Norway": "Oslo", "Japan": "Tokyo"}
Mode = tuple[str, str]


@pytest.fixture(params=MODES, ids=["+".join(mode) for mode in MODES])
def mode(request: pytest.FixtureRequest) -> Mode:
    return request.param


@asynccontextmanager
async def entrance(mode: Mode, recorder: Recorder, tokenizer: Any) -> AsyncIterator[int]:
    """The port that slime would give us as its router's."""
    if mode[1] == "manual":
        yield recorder.port
        return
    async with router(f"http://127.0.0.1:{recorder.port}", tokenizer=tokenizer) as front:
        yield int(front.url.rpartition(":")[2])


def question_in(mode: Mode, country: str) -> Any:
    """The prompt of a question behind two that are worked out."""
    examples = {"Peru": "Lima", "Egypt": "Cairo", "Italy": "Rome", "Cuba": "Havana"}
    if mode[0] == "generate":
        return "".join(worked(*example) for example in examples.items()) + asked(country)
    messages = [message for example in examples.items() for message in worked_in_messages(*example)]
    return [*messages, {"role": "user", "content": asked(country)}]


def worked_in_messages(country: str, capital: str) -> list[dict[str, str]]:
    """The same, by a tool."""
    call = json.dumps({"name": "search", "arguments": {"queries": [f"capital of {country}"]}})
    thought = f"<think>I need the capital of {country}.</think>\n<tool_call>\n{call}\n</tool_call>"
    found = f'Doc 1(Title: "{country}") The capital of {country} is {capital}.'
    answer = f"<think>The capital of {country} is {capital}.</think>\n<answer>{capital}</answer>"
    texts = (("user", asked(country)), ("assistant", thought), ("tool", found), ("assistant", answer))
    return [{"role": role, "content": content} for role, content in texts]


def worked(country: str, capital: str) -> str:
    """A question as it is to be answered."""
    return (
        f"{asked(country)}<think>I need the capital of {country}.</think>\n<search>capital of {country}</search>\n\n"
        f'<information>Doc 1(Title: "{country}") The capital of {country} is {capital}.</information>\n\n'
        f"<think>The capital of {country} is {capital}.</think>\n<answer>{capital}</answer>\n\n"
    )


def asked(country: str) -> str:
    """A question."""
    return f"Question: What is the capital of {country}?\n"


@dataclass
class Stage:
    """The plugin, as slime has set it up, before an engine."""

    mode: Mode
    args: Any
    state: FakeGenerateState
    recorder: Recorder
    retriever: FakeRetriever

    async def roll_out(self, prompt: Any, answer: str = "", **params: Any) -> tuple[Sample, list[Call]]:
        """A rewarded sample, and what the engine saw of it."""
        self.recorder.calls.clear()
        sample = make_sample(prompt=prompt, label={"ground_truth": {"target": [answer]}})
        sample = await generate_with_search.generate(self.args, sample, SLIME_PARAMS | {"max_new_tokens": 80} | params)
        if sample.status is not Sample.Status.ABORTED and sample.reward is None:
            sample.reward = await generate_with_search.reward_func(self.args, sample)
        check_aligned(sample)
        return sample, list(self.recorder.calls)

    async def question(self, country: str, **params: Any) -> tuple[Sample, list[Call]]:
        """A rollout of a question whose answer the retriever knows."""
        self.retriever.documents = [f'"{country}"\nThe capital of {country} is {CAPITALS[country]}.']
        return await self.roll_out(question_in(self.mode, country), CAPITALS[country], **params)

    async def abort_all(self, engine: EngineUnderTest) -> None:
        """What slime does to every engine when it stops a rollout, and an engine to itself before new weights."""
        response = await asyncio.to_thread(engine.post, "/abort_request", {"abort_all": True})
        assert response.status_code == 200


@pytest.fixture
async def stage(
    engine: EngineUnderTest, mode: Mode, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    async with staged(engine, mode, tokenizer, monkeypatch) as stage:
        yield stage


@asynccontextmanager
async def staged(
    engine: EngineUnderTest, mode: Mode, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """The plugin in a mode, before an engine."""
    state = FakeGenerateState(tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", TOOL_TEMPLATE.read_text(encoding="utf-8"))
    monkeypatch.setattr(generate_with_search, "GenerateState", lambda args: state)
    async with Recorder(engine) as recorder, FakeRetriever() as retriever, entrance(mode, recorder, tokenizer) as port:
        args = slime_args(
            llm_api_mode=mode[0],
            token_tracking_mode=mode[1],
            sglang_router_port=port,
            retrieval_server_url=retriever.url,
            engine_timeout_s=300.0,
            engine_retries=8,
            max_obs_tokens=100,
            answer_reserve_tokens=64,
        )
        try:
            yield Stage(mode, args, state, recorder, retriever)
        finally:
            await generate_with_search.close()


def assert_is_what_the_engine_said(sample: Sample, calls: list[Call]) -> None:
    """Every call was sent the sample's own ids, and every sampled id stands in it with mask 1 and its log-probability.

    Everything else in the response has mask 0 and log-probability 0.0.
    """
    ids = sample.tokens
    mask, log_probs = [0] * len(ids), [0.0] * len(ids)
    for call in calls:
        assert call.reply["meta_info"]["prompt_tokens"] == len(call.input_ids)
        assert call.input_ids == ids[: len(call.input_ids)]
        start, end = len(call.input_ids), len(call.input_ids) + len(call.output_ids)
        assert call.output_ids == ids[start:end]
        mask[start:end] = [1] * (end - start)
        log_probs[start:end] = log_probs_of(call.reply)
    prompt = len(ids) - sample.response_length
    assert len(calls[0].input_ids) == prompt
    assert sample.loss_mask == mask[prompt:]
    assert sample.rollout_log_probs == pytest.approx(log_probs[prompt:], abs=1e-6)


async def test_a_sample_holds_what_the_engine_read_and_sampled_and_nothing_else(
    stage: Stage, engine: EngineUnderTest, model: Any, figures: Figures
) -> None:
    found: list[float] = []
    expected: list[float] = []
    turns = []
    for country in [*CAPITALS] * 3:
        if len(turns) >= len(CAPITALS) and max(turns) > 1:
            break
        sample, calls = await stage.question(country, temperature=0.8)
        assert_is_what_the_engine_said(sample, calls)
        assert [call.body["sampling_params"]["temperature"] for call in calls] == [0.8] * len(calls)
        turns.append(len(calls))
        trained = [place for place, trains in enumerate(sample.loss_mask) if trains]
        again = plain_log_probs(model, sample.tokens, len(sample.tokens) - sample.response_length, 0.8)
        found += [sample.rollout_log_probs[place] for place in trained]
        expected += [again[place] for place in trained]
    assert max(turns) > 1  # else nothing was searched in nine rollouts, and this test says little
    figures.agree(engine, f"of rollouts, {' + '.join(stage.mode)}", found, expected)


async def test_the_model_searches_and_reads_what_was_found(stage: Stage, tokenizer: Any) -> None:
    sample, calls = await stage.question("Kenya", temperature=0.0)
    assert_is_what_the_engine_said(sample, calls)
    assert stage.retriever.queries[0] == "capital of Kenya"
    first, second = calls[:2]
    assert first.finish == "stop"
    read = second.input_ids[len(first.input_ids) + len(first.output_ids) :]  # between the two calls
    assert "The capital of Kenya is Nairobi." in tokenizer.decode(read)
    start = len(first.output_ids)
    assert sample.loss_mask[start : start + len(read)] == [0] * len(read)


async def test_temperature_0_gives_the_same_sample_twice(stage: Stage, model: Any) -> None:
    first, second, third = [(await stage.question("Norway", temperature=0.0))[0] for _ in range(3)]
    # The first rollout computes the whole prompt, the others a part of it, which rounds differently.
    prompt = first.tokens[: len(first.tokens) - first.response_length]
    assert_same_but_for_ties(model, prompt, response_ids(first), response_ids(second))
    for name in ("tokens", "loss_mask", "response", "status", "reward", "weight_versions"):
        assert getattr(second, name) == getattr(third, name), name
    assert second.rollout_log_probs == pytest.approx(third.rollout_log_probs, abs=1e-3)
    assert recorded(second).spans == recorded(third).spans


@pytest.mark.parametrize("api", ["generate", "chat"])
async def test_all_ways_of_tracking_give_the_same_sample(
    engine: EngineUnderTest, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    samples = []
    for mode in (mode for mode in MODES if mode[0] == api):
        async with staged(engine, mode, tokenizer, monkeypatch) as stage:
            await stage.question("Japan", temperature=0.0)  # the prompt is computed once, and reused by all that follow
            samples.append((await stage.question("Japan", temperature=0.0))[0])
    first, *others = samples
    assert recorded(first).searches
    for other in others:
        for name in ("tokens", "loss_mask", "response", "status", "reward", "weight_versions"):
            assert getattr(other, name) == getattr(first, name), name
        assert other.rollout_log_probs == pytest.approx(first.rollout_log_probs, abs=1e-3)
        assert recorded(other).spans == recorded(first).spans


@one_mode
async def test_a_prompt_that_the_engine_refuses_discards_the_sample(stage: Stage) -> None:
    sample, calls = await stage.roll_out("a " * CONTEXT)
    assert [call.status for call in calls] == [400]  # and is not asked again
    assert recorded(sample).discarded and recorded(sample).stop.value == "engine_failed"


@one_mode
async def test_when_slime_aborts_the_sample_keeps_what_was_sampled(stage: Stage, engine: EngineUnderTest) -> None:
    rollout = asyncio.create_task(stage.roll_out(PATTERN, max_new_tokens=1500, ignore_eos=True))
    await stage.recorder.arrived.acquire()
    await asyncio.sleep(2.0)  # a few tokens
    stage.state.aborted = True
    await stage.abort_all(engine)
    sample, calls = await rollout
    assert sample.status is Sample.Status.ABORTED
    assert [call.finish for call in calls] == ["abort"]
    assert sample.response_length == len(calls[0].output_ids) > 0
    assert_is_what_the_engine_said(sample, calls)


@one_mode
async def test_a_reply_that_the_engine_aborts_itself_is_requested_again(stage: Stage, engine: EngineUnderTest) -> None:
    rollout = asyncio.create_task(stage.roll_out(PATTERN, max_new_tokens=100, ignore_eos=True))
    while len(stage.recorder.calls) < 2 and not rollout.done():
        await stage.abort_all(engine)  # one that comes before the request does nothing
        await asyncio.sleep(0.3)
    sample, (*aborted, repeated) = await rollout
    assert {call.finish for call in aborted} == {"abort"}
    assert repeated.finish == "length"
    assert [call.input_ids for call in aborted] == [repeated.input_ids] * len(aborted)
    assert_is_what_the_engine_said(sample, [repeated])
