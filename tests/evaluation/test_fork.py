"""Forks: the recorded ids up to a search stay, the model reads something else there, and goes on."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from chat_helpers import END, calling, tool_tokenizer
from fakes import FakeEngine, FakeGenerateState, FakeRetriever, Turn, slime_args, tiny_tokenizer
from rollout_helpers import ANSWER, SEARCH, make_sample
from rollout_helpers import PARAMS as SHORT
from slime.utils.types import Sample

import generate_with_search
from evaluation.fork import ForkError, Replacement, fork
from evaluation.records import record_of
from search_rollout.config import load_config
from search_rollout.runtime import Runtime, engine_url
from search_rollout.search.passage import Passage

SECOND = "<think>And Peru?</think>\n<search>capital of Peru</search>"
PARAMS = {**SHORT, "max_new_tokens": 200}
LIMA = [Passage("Peru", "The capital of Peru is Lima.")]


@asynccontextmanager
async def forking(
    engine: FakeEngine, retriever: FakeRetriever | None = None, **settings: Any
) -> AsyncIterator[tuple[Runtime, Any]]:
    """A runtime between the fakes, and slime's args."""
    async with engine, retriever or FakeRetriever() as search:
        args = slime_args(sglang_router_port=engine.port, retrieval_server_url=search.url, **settings)
        config = load_config(generate_with_search.SEARCH_R1_CONFIGS, {}, args)
        runtime = Runtime(engine_url(args), config, FakeGenerateState(engine.tokenizer))
        try:
            yield runtime, args
        finally:
            await runtime.close()


async def rolled_out(runtime: Runtime, args: Any, sample: Sample) -> dict[str, Any]:
    """A recorded rollout, as it stands in a file."""
    sample.tokens = []
    rollout = await runtime.begin(args, sample, PARAMS, True)
    stop = await generate_with_search.roll_out(runtime, rollout, PARAMS)
    from search_rollout.samples.fields import write_rollout

    write_rollout(sample, rollout.trajectory, rollout.record(stop), runtime.decode)
    sample.reward = await generate_with_search.reward_func(args, sample)
    return json.loads(json.dumps(record_of(sample, id="q-1")))


def reader(request: dict, tokenizer: Any) -> Turn:
    """Searches twice, then answers with the capital of the last document that it read."""
    text = tokenizer.decode(request["input_ids"])
    found = text.count("<information>")
    if found < 2:
        return Turn([SEARCH, SECOND][found])
    city = text.rpartition("is ")[2].partition(".")[0]
    return Turn(f"<think>I read.</think>\n<answer>{city}</answer>")


def with_ids(fields: dict[str, Any], turn: int) -> list[int]:
    """Prompt and response up to the end of a turn, by the record's spans."""
    ends, length = [], 0
    for kind, tokens in fields["metadata"]["search_r1"]["spans"]:
        length += tokens
        if kind == "turn":
            ends.append(length)
    return fields["tokens"][: len(fields["tokens"]) - fields["response_length"] + ends[turn - 1]]


@pytest.mark.parametrize("turn", [1, 2])
def test_the_engine_is_sent_the_recorded_ids_and_then_the_new_observation(turn):
    async def scenario() -> None:
        tokenizer = tiny_tokenizer()
        # Odd splits that no encoder gives: decoding and encoding them again would change them.
        odd = iter([tokenizer.encode(letter)[0] for letter in SEARCH])
        engine = FakeEngine(tokenizer, lambda request: reader(request, tokenizer))
        first = engine.script
        engine.script = lambda request: Turn(ids=list(odd)) if not engine.requests[1:] else first(request)
        async with forking(engine) as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample())
            before = copy.deepcopy(fields)
            asked = len(engine.requests)
            forked = await fork(runtime, args, fields, turn, [Replacement("Peru?", LIMA)], PARAMS)
            prefix = with_ids(fields, turn)
            sent = engine.requests[asked]["input_ids"]
            assert sent[: len(prefix)] == prefix == forked["tokens"][: len(prefix)]
            assert tokenizer.encode(SEARCH) != fields["tokens"][-fields["response_length"] :][: len(SEARCH)]
            added = tokenizer.decode(sent[len(prefix) :])
            assert added == '\n\n<information>Doc 1(Title: "Peru") The capital of Peru is Lima.</information>\n\n'
            assert fields == before
            start = len(fields["tokens"]) - fields["response_length"]
            kept = len(prefix) - start
            for name in ("loss_mask", "rollout_log_probs"):
                assert forked[name][:kept] == fields[name][:kept]
            record = forked["metadata"]["search_r1"]
            assert record["turns"][turn - 1]["queries"] == ["Peru?"] and forked["id"] == "q-1"

    asyncio.run(scenario())


def test_another_document_gives_another_answer_and_its_reward():
    async def scenario() -> None:
        tokenizer = tiny_tokenizer()
        engine, retriever = FakeEngine(tokenizer, lambda request: reader(request, tokenizer)), FakeRetriever()
        retriever.documents = ['"Kenya"\nThe capital of Kenya is Mombasa.']
        async with forking(engine, retriever) as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample())
            right = [Passage("Kenya", "The capital of Kenya is Nairobi.")]
            forked = await fork(runtime, args, fields, 2, [Replacement("capital of Kenya", right)], PARAMS)
        assert (fields["reward"], forked["reward"]) == (0.2, 1.0)
        assert forked["metadata"]["search_r1"]["score"]["answer"] == "Nairobi"

    asyncio.run(scenario())


def test_the_same_passages_give_the_same_trajectory():
    async def scenario() -> None:
        tokenizer = tiny_tokenizer()
        engine = FakeEngine(tokenizer, lambda request: reader(request, tokenizer))
        async with forking(engine) as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample())
            for turn in (1, 2):
                recorded = fields["metadata"]["search_r1"]["turns"][turn - 1]
                same = [Passage(*one) for one in recorded["results"][0]["passages"]]
                forked = await fork(runtime, args, fields, turn, [Replacement(recorded["queries"][0], same)], PARAMS)
                for name in ("tokens", "loss_mask", "response", "reward", "label", "prompt"):
                    assert forked[name] == fields[name], name

    asyncio.run(scenario())


def test_a_changed_query_is_searched_and_the_model_reads_what_it_finds():
    async def scenario() -> None:
        tokenizer = tiny_tokenizer()
        engine, retriever = FakeEngine(tokenizer, lambda request: reader(request, tokenizer)), FakeRetriever()
        async with forking(engine, retriever) as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample())
            await fork(runtime, args, fields, 2, [Replacement("capital of Chad")], PARAMS)
            assert retriever.queries == ["capital of Kenya", "capital of Peru", "capital of Chad"]
            await retriever.stop()
            with pytest.raises(ForkError, match="The search for 'x' failed"):
                await fork(runtime, args, fields, 2, [Replacement("x")], PARAMS)

    asyncio.run(scenario())


def test_several_queries_of_a_tool_calling_turn_are_replaced_one_by_one():
    async def scenario() -> None:
        tokenizer = tool_tokenizer()
        turns = iter([calling("capital of Kenya", "capital of Peru"), f"Nairobi{END}", f"Lima{END}"])
        engine = FakeEngine(tokenizer, lambda _: Turn(next(turns)))
        prompt = [{"role": "user", "content": "What is the capital of Kenya?"}]
        async with forking(engine, llm_api_mode="chat") as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample(prompt=prompt))
            replaced = [Replacement("capital of Kenya"), Replacement("capital of Peru", LIMA)]
            forked = await fork(runtime, args, fields, 1, replaced, PARAMS)
            with pytest.raises(ForkError, match="Turn 1 made 2 searches; 1 were given"):
                await fork(runtime, args, fields, 1, replaced[:1], PARAMS)
        results = forked["metadata"]["search_r1"]["turns"][0]["results"]
        assert [[row[0] for row in one["passages"]] for one in results] == [["Kenya capital"], ["Peru"]]
        assert forked["metadata"]["search_r1"]["score"]["answer"] == "Lima"

    asyncio.run(scenario())


def broken(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(fields: dict[str, Any]) -> dict[str, Any]:
        fields = copy.deepcopy(fields)
        change(fields)
        return fields

    return apply


@pytest.mark.parametrize(
    ("change", "turn", "message"),
    [
        (lambda fields: fields, 2, "Turn 2 made no search"),
        (lambda fields: fields, 0, "Turn 0 made no search"),
        (lambda fields: fields, 9, "Turn 9 made no search"),
        (lambda fields: fields | {"metadata": None}, 1, "Only rollouts recorded by this plugin"),
        (lambda fields: fields | {"metadata": {"search_r1": {"segments": []}}}, 1, "Only rollouts recorded by this"),
        (broken(lambda fields: fields["tokens"].__setitem__(0, 7)), 1, "does not reproduce the recorded prompt's ids"),
        (broken(lambda fields: fields["metadata"]["search_r1"].pop("turns")), 1, "Cannot fork: the record of the"),
        (broken(lambda fields: fields["metadata"]["search_r1"]["spans"].clear()), 1, "spans do not fit"),
        (
            broken(lambda fields: fields["metadata"]["search_r1"]["turns"][0].__setitem__("queries", ["other"])),
            1,
            "reads turn 1 differently",
        ),
    ],
)
def test_an_impossible_fork_is_refused_before_calling_the_engine(change, turn, message):
    async def scenario() -> None:
        engine = FakeEngine(tiny_tokenizer(), [Turn(SEARCH), Turn(ANSWER)])
        async with forking(engine) as (runtime, args):
            fields = change(await rolled_out(runtime, args, make_sample()))
            with pytest.raises(ForkError, match=message):
                await fork(runtime, args, fields, turn, [Replacement("x", LIMA)], PARAMS)
            assert len(engine.requests) == 2

    asyncio.run(scenario())


def test_passages_that_do_not_fit_are_cut_as_in_any_rollout_and_no_room_ends_the_fork():
    async def scenario() -> None:
        engine = FakeEngine(tiny_tokenizer(), [Turn(SEARCH), Turn(ANSWER), Turn(ANSWER)])
        long = [Passage("Kenya", "word </information> " * 5000)]
        async with forking(engine, max_obs_tokens=100) as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample())
            forked = await fork(runtime, args, fields, 1, [Replacement("x", long)], PARAMS)
            observed = forked["metadata"]["search_r1"]["spans"][1]
            assert observed[0] == "observation" and observed[1] <= 100
            assert forked["response"].count("</information>") == 1
        async with forking(FakeEngine(tiny_tokenizer(), []), max_context_length=200) as (runtime, args):
            ended = await fork(runtime, args, fields, 1, [Replacement("x", LIMA)], PARAMS)
        assert ended["metadata"]["search_r1"]["stop_reason"] == "no_room_to_observe"

    asyncio.run(scenario())


def test_a_dump_without_log_probabilities_can_be_forked():
    async def scenario() -> None:
        engine = FakeEngine(tiny_tokenizer(), [Turn(SEARCH), Turn(ANSWER), Turn(ANSWER)])
        async with forking(engine) as (runtime, args):
            fields = await rolled_out(runtime, args, make_sample()) | {"rollout_log_probs": None, "loss_mask": None}
            forked = await fork(runtime, args, fields, 1, [Replacement("x", LIMA)], PARAMS)
        assert forked["rollout_log_probs"] is None and forked["reward"] == 1.0

    asyncio.run(scenario())
