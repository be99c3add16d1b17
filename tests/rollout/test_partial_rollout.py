"""Aborts at random moments: a resumed rollout ends in the Sample that it would have been without them.

The engine here is deterministic: what it samples is a function of the ids that it is sent, and it looks for stop
strings only in what it samples in that call, as SGLang does.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import FakeEngine, FakeGenerateState, FakeRetriever, Turn
from rollout_helpers import PARAMS, make_sample, plugin, recorded, roll_out, texts, timeless
from slime.utils.types import Sample
from test_exact_tokens import strange_split
from test_modes import ANSWERS, SEARCHES, TOKENIZER, router

import generate_with_search
from search_rollout.search import searcher
from token_router.token_trie import TokenTrie

MANUAL = [("generate", "manual", "strict"), ("chat", "manual", "strict")]
MODES = [
    *MANUAL,
    ("generate", "manual", "simple"),
    ("chat", "manual", "simple"),
    ("generate", "router_radix", "strict"),
    ("chat", "router_radix", "strict"),
    ("chat", "router_handler", "strict"),
    ("chat", "router_handler", "simple"),
]
SAME = (
    "stop_reason", "gave_up", "turns", "corrections", "mistakes", "think_opened", "end_of_turn", "segments",
    "search_counts", "searches", "score",
)  # fmt: skip


@dataclass
class Aborts:
    """When slime's next abort comes: at the n-th time that the plugin asks for it, or behind n ids of a reply."""

    state: FakeGenerateState | None = None
    looks: int | None = None
    ids: int | None = None
    count: int = 0

    def strike(self) -> None:
        """Aborts, once."""
        assert self.state is not None
        self.state.aborted, self.looks, self.ids = True, None, None
        self.count += 1

    def looked(self, *_: Any) -> bool:
        """What the plugin sees when it looks."""
        assert self.state is not None
        if self.looks is not None:
            self.looks -= 1
            if self.looks <= 0:
                self.strike()
        return self.state.aborted


@dataclass
class DeterministicEngine(FakeEngine):
    """Writes the turns of `plan` while it is learning; then goes on with what it has learnt, from wherever it is."""

    plan: list[list[int]] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)  # prompt and response
    learning: bool = True
    aborts: Aborts = field(default_factory=Aborts)

    def log_prob(self, request: int, position: int) -> float:
        """A function of the place in the trajectory."""
        return -(len(self.requests[request]["input_ids"]) + position) / 1000 - 0.0005

    def answer(self, request: dict) -> Turn:
        """What comes behind the request's ids."""
        sent, params = request["input_ids"], request["sampling_params"]
        if self.learning:
            self.learnt = sent + self.plan.pop(0)
        assert self.learnt[: len(sent)] == sent, "an id was lost or doubled"
        ids: list[int] = []
        finish = "length"
        for token in self.learnt[len(sent) :][: params["max_new_tokens"]]:
            ids.append(token)
            text = self.tokenizer.decode(ids[-20:])  # longer than any stop string
            if token == self.tokenizer.eos_token_id or any(stop in text for stop in params["stop"]):
                finish = "stop"
                break
        assert finish == "stop" or len(ids) == params["max_new_tokens"], "the trajectory should have ended"
        if self.aborts.ids is not None and self.aborts.ids <= len(ids):
            ids, finish = ids[: self.aborts.ids], "abort"
            self.aborts.strike()
        return Turn(ids=ids, finish=finish)


def turns(api_mode: str, choose: random.Random) -> list[list[int]]:
    """Four turns in ids that no tokenizer would give; the last one answers, if the rollout comes so far."""
    texts = [choose.choice(SEARCHES[api_mode]) for _ in range(choose.randint(0, 3))]
    texts += [ANSWERS[api_mode]] * (4 - len(texts))
    thought = choose.choice(["<think>I need it.</think>\n", "", "<think>漢字 é</think>", "a < b </sea "])
    overshoot = choose.choice(["", "\n\n", " and"]) if api_mode == "generate" else ""
    end = "" if api_mode == "generate" else "<|im_end|>"
    return [strange_split(thought + text.removesuffix(end) + overshoot + end, choose) for text in texts]


@asynccontextmanager
async def deterministic(
    monkeypatch: pytest.MonkeyPatch, api: str, tracking: str, loss_mask: str, **settings: Any
) -> AsyncIterator[tuple[Any, DeterministicEngine, FakeRetriever]]:
    """slime's args with --partial-rollout for a plugin in these modes, and what stands behind it."""
    monkeypatch.setattr(searcher, "ABORT_POLL_S", 0.002)
    engine, retriever = DeterministicEngine(TOKENIZER, []), FakeRetriever()
    engine.script = engine.answer
    modes = {"llm_api_mode": api, "token_tracking_mode": tracking, "loss_mask_mode": loss_mask, "partial_rollout": True}
    async with plugin(monkeypatch, TOKENIZER, engine, retriever, **(modes | settings)) as (args, state):
        engine.aborts.state = state
        monkeypatch.setattr("search_rollout.runtime.Runtime.aborted", lambda _: engine.aborts.looked())
        if tracking == "manual":
            yield args, engine, retriever
            return
        async with router(engine.port, TokenTrie(10**6)) as args.sglang_router_port:
            yield args, engine, retriever


def question(api: str) -> Sample:
    """The sample, as slime's buffer gives it out the first time."""
    prompt = "What is the capital of Kenya?\n"
    return make_sample(prompt=[{"role": "user", "content": prompt}] if api == "chat" else prompt)


async def with_aborts(
    args: Any, sample: Sample, params: dict, engine: DeterministicEngine, choose: random.Random
) -> Sample:
    """Rolls out, aborted several times, and resumed as slime does it."""
    aborts = engine.aborts
    assert aborts.state is not None
    for times in range(20):
        if times < 8 and choose.random() < 0.8:
            aborts.looks = choose.randint(1, 25) if choose.random() < 0.5 else None
            aborts.ids = None if aborts.looks else choose.randint(0, 40)
        sample = await roll_out(args, sample, params)
        if sample.status is not Sample.Status.ABORTED:
            aborts.looks = aborts.ids = None
            return sample
        aborts.state.aborted = False
        sample.metadata = json.loads(json.dumps(sample.metadata))  # nothing in it but JSON values
        check_parts(sample)
    raise AssertionError("the rollout does not come to an end")


def check_parts(sample: Sample) -> None:
    """An aborted Sample's segments cover its response."""
    assert sum(segment.tokens for segment in recorded(sample).spans) == sample.response_length


def outcome(sample: Sample) -> dict:
    """All of a Sample that aborts must not change."""
    record = timeless(recorded(sample))
    assert record.resume is None
    return {
        "tokens": sample.tokens,
        "mask": sample.loss_mask,
        "log_probs": sample.rollout_log_probs,
        "response": sample.response,
        "length": sample.response_length,
        "status": sample.status,
        "reward": sample.reward,
        "record": record,
    }


async def compare(monkeypatch: pytest.MonkeyPatch, modes: tuple[str, str, str], aborts: int, seed: int = 0) -> int:
    """Compares rollouts with and without aborts until there were so many aborts; how many there were."""
    api = modes[0]
    choose = random.Random(f"{modes} {seed}")
    async with deterministic(monkeypatch, *modes) as (args, engine, _):
        small = args.__class__(**{**vars(args), "max_context_length": 700, "answer_reserve_tokens": 60})
        while engine.aborts.count < aborts:
            here = choose.choice([args, args, small])
            limit = choose.choice([200, 200, 35])
            params = {**PARAMS, "max_new_tokens": limit, "temperature": 1.0 if modes[2] == "simple" else 0.8}
            engine.plan, engine.learnt, engine.learning = turns(api, choose), [], True
            plain = await roll_out(here, question(api), params)
            engine.learning = False
            resumed = await with_aborts(here, question(api), params, engine, choose)
            assert outcome(resumed) == outcome(plain)
        return engine.aborts.count


@pytest.mark.parametrize("modes", MODES, ids=" ".join)
async def test_a_resumed_rollout_is_the_one_that_was_not_interrupted(monkeypatch, modes):
    assert await compare(monkeypatch, modes, 12) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("modes", MODES, ids=" ".join)
async def test_a_thousand_aborts_change_nothing(monkeypatch, modes):
    assert await compare(monkeypatch, modes, 1000 // len(MODES), seed=1) >= 1000 // len(MODES)


# --- what an abort may leave, one by one ------------------------------------------------------------------------------

SEARCH, ANSWER = "<think>x</think><search>Kenya</search>", "<think>y</think><answer>Nairobi</answer>"


@asynccontextmanager
async def aborted_in_call(
    monkeypatch: pytest.MonkeyPatch, number: int, *script: Turn, **settings: Any
) -> AsyncIterator[tuple[Any, FakeEngine, Sample]]:
    """A sample whose rollout was aborted in that engine call, and all that is needed to resume it."""
    replies = iter(script)

    def next_turn(_: dict) -> Turn:
        state.aborted = len(engine.requests) == number
        return next(replies)

    engine = FakeEngine(TOKENIZER, next_turn)
    async with plugin(monkeypatch, TOKENIZER, engine, **({"partial_rollout": True} | settings)) as (args, state):
        sample = await roll_out(args, make_sample())
        assert sample.status is Sample.Status.ABORTED
        state.aborted = False
        yield args, engine, sample


@pytest.mark.parametrize("left", ["<search>Kenya</sea", "<search>Kenya<", "<search>Kenya</search"])
async def test_the_beginning_of_a_stop_string_is_sampled_again(monkeypatch, left):
    cut = Turn(left, finish="abort")
    async with aborted_in_call(monkeypatch, 1, cut, Turn("</search>"), Turn(ANSWER)) as (args, engine, sample):
        sample = await roll_out(args, sample)
    sent = engine.requests[1]["input_ids"]
    assert TOKENIZER.decode(sent).endswith("<search>Kenya")
    assert engine.requests[1]["sampling_params"]["max_new_tokens"] < PARAMS["max_new_tokens"]
    assert texts(sample, TOKENIZER)[0] == "<search>Kenya</search>" and recorded(sample).model_turns == 2


@pytest.mark.parametrize(("left", "turns"), [(SEARCH, 2), (ANSWER, 1)])
async def test_a_turn_that_was_complete_when_the_abort_came_is_not_continued(monkeypatch, left, turns):
    async with aborted_in_call(monkeypatch, 1, Turn(left, finish="abort"), Turn(ANSWER)) as (args, engine, sample):
        sample = await roll_out(args, sample)
    assert sample.status is Sample.Status.COMPLETED and recorded(sample).model_turns == turns == len(engine.requests)


async def test_a_turn_that_had_all_its_tokens_is_cut_off_as_by_its_length(monkeypatch):
    long = Turn("<think>" + "long " * 100, finish="abort")
    long.ids = TOKENIZER.encode(long.text)[: PARAMS["max_new_tokens"]]
    async with aborted_in_call(monkeypatch, 1, long) as (args, engine, sample):
        sample = await roll_out(args, sample)
    assert recorded(sample).stop.value == "call_limit" and len(engine.requests) == 1


async def test_a_search_that_was_under_way_is_made_again_without_a_call_of_the_engine(monkeypatch):
    retriever = FakeRetriever(trouble=lambda number: 5.0 if number == 0 else None)
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(ANSWER)])
    async with plugin(monkeypatch, TOKENIZER, engine, retriever, partial_rollout=True) as (args, state):
        rollout = asyncio.create_task(roll_out(args, make_sample()))
        while not retriever.queries:  # noqa: ASYNC110  (the fake server has no event to wait for)
            await asyncio.sleep(0.01)
        state.aborted = True
        sample = await rollout
        assert sample.response == SEARCH
        state.aborted = False
        sample = await roll_out(args, sample)
    assert retriever.queries == ["Kenya", "Kenya"] and len(engine.requests) == 2
    assert sample.reward == 1.0 and [search.query for search in recorded(sample).searches] == ["Kenya"]


async def test_old_tokens_are_not_trained_where_slime_says_so(monkeypatch):
    turns = Turn(SEARCH), Turn(ANSWER[:20], finish="abort"), Turn(ANSWER[20:])
    settings = {"mask_offpolicy_in_partial_rollout": True}
    async with aborted_in_call(monkeypatch, 2, *turns, **settings) as (args, engine, sample):
        old = sample.response_length
        sample = await roll_out(args, sample)
    assert sample.loss_mask == [0] * old + [1] * len(engine.sampled[2])
    assert len(sample.rollout_log_probs) == sample.response_length and sample.reward == 1.0


@pytest.mark.parametrize("fault", ["tokens", "prompt", "log_probs", "spans"])
async def test_a_sample_that_does_not_fit_its_own_record_starts_again(monkeypatch, caplog, fault):
    turns = Turn(SEARCH), Turn(ANSWER[:20], finish="abort"), Turn(ANSWER)
    async with aborted_in_call(monkeypatch, 2, *turns) as (args, engine, sample):
        match fault:
            case "tokens":
                sample.tokens = sample.tokens[:-1]
            case "prompt":
                sample.prompt += "Tell me.\n"
            case "log_probs":
                sample.rollout_log_probs = None
            case "spans":
                sample.metadata["search_r1"]["spans"].pop()
        sample = await roll_out(args, sample)
    assert sample.response == ANSWER and "starts again" in caplog.text
    assert TOKENIZER.decode(engine.requests[2]["input_ids"]) == sample.prompt


async def test_a_resumed_sample_reports_each_calls_weights_and_all_time_outside_the_engine(monkeypatch):
    turns = Turn(SEARCH), Turn(ANSWER[:20], finish="abort"), Turn(ANSWER[20:])
    async with aborted_in_call(monkeypatch, 2, *turns) as (args, _, sample):
        waited = sample.non_generation_time
        sample = await roll_out(args, sample)
    assert sample.weight_versions == ["7"] * 3 and sample.non_generation_time == waited > 0
    assert recorded(sample).resume is None


# --- fully-async rollout ----------------------------------------------------------------------------------------------


async def test_two_event_loops_of_one_process_roll_out_side_by_side(monkeypatch):
    """slime's own loop, and that of the fully-async worker: each has clients of its own."""
    script = [Turn(SEARCH), Turn(ANSWER)]

    def by_turn(request: dict) -> Turn:
        return script["<information>" in TOKENIZER.decode(request["input_ids"])]

    async def worker(args: Any) -> list[Sample]:
        try:
            return await asyncio.gather(*(roll_out(args, make_sample(index=index)) for index in range(8)))
        finally:
            await generate_with_search.close()

    engine = FakeEngine(TOKENIZER, by_turn)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        there = asyncio.create_task(asyncio.to_thread(asyncio.run, worker(args)))
        here = await asyncio.gather(*(roll_out(args, make_sample(index=index)) for index in range(8)))
        samples = [*here, *await there]
    assert [sample.reward for sample in samples] == [1.0] * 16 and len(engine.requests) == 32
