"""Rollouts in chat mode turn by turn, their rewards, and the simple loss mask in both API modes."""

import asyncio
import copy
import json
import logging
from functools import partial

import pytest
from aiohttp import web
from chat_helpers import END, call, calling, raw_call, tool_responses, tool_tokenizer
from fakes import CHATML, FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import ANSWER as XML_ANSWER
from rollout_helpers import PARAMS, SEARCH, make_sample, mistakes, plugin, recorded, response_ids, roll_out, texts
from slime.utils.types import Sample

import generate_with_search
from search_rollout.config import ConfigError
from search_rollout.protocols.chat_template import decode, encode, next_turn_ids, render_prompt
from search_rollout.protocols.prompts import SEARCH_TOOL
from search_rollout.protocols.tools import CORRECTION, MISTAKES

TOKENIZER = tool_tokenizer()
END_ID = TOKENIZER.eos_token_id
QUESTION = [{"role": "user", "content": "What is the capital of Kenya?"}]
LONG = {**PARAMS, "max_new_tokens": 1000}
CALL = calling("capital of Kenya")
ANSWER = f"<think>It is Nairobi.</think>\n<answer>Nairobi</answer>{END}"
FOUND = 'Doc 1(Title: "Kenya capital") The capital of Kenya is Nairobi.'
OBSERVATION = f"\n<|im_start|>user\n<tool_response>\n{FOUND}\n</tool_response>{END}\n<|im_start|>assistant\n"

chat = partial(plugin, llm_api_mode="chat")


def scripted(*turns: str | Turn, tokenizer=TOKENIZER) -> FakeEngine:
    return FakeEngine(tokenizer, [Turn(turn) if isinstance(turn, str) else turn for turn in turns])


def chat_sample(**changes) -> Sample:
    return make_sample(**({"prompt": QUESTION} | changes))


async def rolled_out(
    monkeypatch, *turns: str | Turn, params=LONG, tokenizer=TOKENIZER, sample=None, **settings
) -> Sample:
    """One rollout in chat mode over this script, and its reward."""
    async with chat(monkeypatch, tokenizer, scripted(*turns, tokenizer=tokenizer), **settings) as (args, _):
        return await roll_out(args, sample or chat_sample(), params)


# --- the loop -----------------------------------------------------------------------------------------------------


async def test_a_call_and_an_answer_make_a_completed_sample_with_reward_one(monkeypatch):
    engine, retriever = scripted(CALL, ANSWER), FakeRetriever()
    async with chat(monkeypatch, TOKENIZER, engine, retriever) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
    assert sample.status is Sample.Status.COMPLETED and sample.reward == 1.0
    assert retriever.queries == ["capital of Kenya"]
    assert sample.response == CALL + OBSERVATION + ANSWER
    assert recorded(sample).stop.value == "answered" and recorded(sample).score["valid_format"]
    assert mistakes(sample) == {} and recorded(sample).corrections == 0 and recorded(sample).model_turns == 2
    assert [segment.kind for segment in recorded(sample).spans] == ["turn", "observation", "turn"]


async def test_ids_in_are_ids_out_over_several_turns(monkeypatch):
    engine = scripted(CALL, raw_call("{") + END, "<think>endless" + END, ANSWER)
    async with chat(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
    prompt = encode(TOKENIZER, render_prompt(TOKENIZER, QUESTION, [SEARCH_TOOL]))
    assert engine.requests[0]["input_ids"] == prompt
    for earlier, later, sampled in zip(engine.requests, engine.requests[1:], engine.sampled, strict=False):
        assert later["input_ids"][: len(earlier["input_ids"]) + len(sampled)] == earlier["input_ids"] + sampled
    assert sample.tokens == engine.requests[-1]["input_ids"] + engine.sampled[-1]
    position = 0
    for number, (request, sampled) in enumerate(zip(engine.requests, engine.sampled, strict=True)):
        start = len(request["input_ids"]) - len(prompt)
        end = start + len(sampled)
        assert set(sample.loss_mask[position:start]) <= {0} and set(sample.rollout_log_probs[position:start]) <= {0.0}
        assert sample.loss_mask[start:end] == [1] * len(sampled)
        assert sample.rollout_log_probs[start:end] == [engine.log_prob(number, place) for place in range(len(sampled))]
        position = end
    assert position == sample.response_length == len(sample.tokens) - len(prompt)


async def test_the_response_is_the_text_of_all_turns(monkeypatch):
    sample = await rolled_out(monkeypatch, CALL, "<think>endless" + END, CALL, ANSWER)
    correction = f"\n<|im_start|>user\n{CORRECTION}{END}\n<|im_start|>assistant\n"
    assert sample.response == CALL + OBSERVATION + "<think>endless" + END + correction + CALL + OBSERVATION + ANSWER
    assert sample.response == decode(TOKENIZER, response_ids(sample))
    assert sample.response == "".join(texts(sample, TOKENIZER))


async def test_no_stop_strings_are_added_and_every_parameter_is_forwarded(monkeypatch):
    params = {
        **LONG,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.05,
        "stop": ["DONE"],
        "stop_token_ids": [5],
        "min_new_tokens": 2,
        "frequency_penalty": 0.1,
        "sampling_seed": 3,
        "custom_params": {"a": [1]},
        "no_stop_trim": False,
        "skip_special_tokens": True,
    }
    untouched = copy.deepcopy(params)
    engine = scripted(CALL, ANSWER)
    async with chat(monkeypatch, TOKENIZER, engine) as (args, _):
        await generate_with_search.generate(args, chat_sample(), params)
    assert params == untouched
    for request in engine.requests:
        assert request["sampling_params"] == {**untouched, "no_stop_trim": True, "skip_special_tokens": False}


@pytest.mark.parametrize("stop", [None, []])
async def test_no_stop_strings_are_sent_unless_the_caller_gives_some(monkeypatch, stop):
    engine = scripted(ANSWER)
    async with chat(monkeypatch, TOKENIZER, engine) as (args, _):
        await roll_out(args, chat_sample(), {**LONG, "stop": stop})
    assert engine.requests[0]["sampling_params"]["stop"] == []


async def test_an_end_of_turn_that_was_sampled_is_kept_trained_and_not_doubled(monkeypatch):
    sample = await rolled_out(monkeypatch, CALL, ANSWER)
    places = [place for place, token in enumerate(response_ids(sample)) if token == END_ID]
    first, _, last = places  # the second is the template's
    assert [sample.loss_mask[place] for place in places] == [1, 0, 1]
    assert sample.loss_mask[first + 1] == 0 and last == sample.response_length - 1


async def test_an_end_of_turn_that_was_not_sampled_is_supplied_and_masked(monkeypatch):
    bare = CALL.removesuffix(END)  # a stop string of the caller's ended it
    sample = await rolled_out(monkeypatch, bare, ANSWER, params={**LONG, "stop": ["</tool_call>"]})
    assert sample.response == CALL + OBSERVATION + ANSWER
    place = len(encode(TOKENIZER, bare))
    assert response_ids(sample)[place] == END_ID
    assert sample.loss_mask[place - 1 : place + 1] == [1, 0]
    assert texts(sample, TOKENIZER)[1] == END + OBSERVATION
    assert sample.reward == 1.0


async def test_a_turn_that_another_end_mark_ended_is_not_ended_a_second_time(monkeypatch):
    other = CALL.replace(END, "<|endoftext|>")
    sample = await rolled_out(monkeypatch, other, ANSWER)
    assert sample.response == other + OBSERVATION + ANSWER


async def test_a_turn_that_its_length_cuts_off_ends_the_trajectory(monkeypatch):
    sample = await rolled_out(monkeypatch, CALL, params={**LONG, "max_new_tokens": 20})
    assert recorded(sample).stop.value == "call_limit" and sample.status is Sample.Status.TRUNCATED
    assert sample.loss_mask == [1] * 20
    assert sample.reward == 0.0


async def test_a_call_that_was_complete_when_the_length_cut_its_turn_is_not_run(monkeypatch):
    retriever = FakeRetriever()
    limit = len(encode(TOKENIZER, CALL.removesuffix(END)))
    async with chat(monkeypatch, TOKENIZER, scripted(CALL + "more"), retriever) as (args, _):
        sample = await roll_out(args, chat_sample(), {**LONG, "max_new_tokens": limit})
    assert recorded(sample).stop.value == "call_limit" and retriever.queries == []


async def test_an_answer_cut_off_by_its_length_is_no_answer(monkeypatch):
    sample = await rolled_out(monkeypatch, "<think>x</think>" + "Nairobi " * 40, params={**LONG, "max_new_tokens": 20})
    assert recorded(sample).stop.value == "call_limit" and sample.status is Sample.Status.TRUNCATED


async def test_a_turn_that_ends_inside_a_thought_is_corrected_by_a_user_turn(monkeypatch):
    sample = await rolled_out(monkeypatch, "<think>" + call("a") + END, ANSWER)
    assert f"{END}\n<|im_start|>user\n{CORRECTION}{END}\n<|im_start|>assistant\n<think>It" in sample.response
    assert recorded(sample).corrections == 1 and recorded(sample).searches == []
    assert sample.reward == pytest.approx(0.8)


async def test_after_three_action_turns_a_call_in_the_last_turn_ends_the_trajectory(monkeypatch):
    engine, retriever = scripted(CALL, CALL, CALL, CALL), FakeRetriever()
    async with chat(monkeypatch, TOKENIZER, engine, retriever) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
    assert len(engine.requests) == 4 and len(retriever.queries) == 3
    assert recorded(sample).stop.value == "turns_used" and sample.status is Sample.Status.TRUNCATED
    assert sample.response.endswith(CALL) and sample.loss_mask[-1] == 1
    assert sample.reward == 0.0


async def test_an_answer_in_the_answer_only_turn_counts(monkeypatch):
    assert (await rolled_out(monkeypatch, CALL, CALL, CALL, ANSWER)).reward == 1.0


async def test_a_turn_that_says_nothing_ends_without_an_answer(monkeypatch):
    sample = await rolled_out(monkeypatch, END)
    assert recorded(sample).score["answer"] is None and sample.reward == 0.0


# --- prompts, tools, template -------------------------------------------------------------------------------------


async def test_a_prompt_of_messages_is_rendered_with_the_tools_and_not_modified(monkeypatch):
    engine, sample = scripted(ANSWER), chat_sample()
    async with chat(monkeypatch, TOKENIZER, engine) as (args, _):
        await roll_out(args, sample, LONG)
    sent = decode(TOKENIZER, engine.requests[0]["input_ids"])
    assert sent.startswith("<|im_start|>system\nTools") and json.dumps(SEARCH_TOOL) in sent
    assert sent.endswith(f"<|im_start|>user\nWhat is the capital of Kenya?{END}\n<|im_start|>assistant\n")
    assert sample.prompt == QUESTION


async def test_a_string_prompt_is_sent_unchanged(monkeypatch):
    text = render_prompt(TOKENIZER, QUESTION, [SEARCH_TOOL])  # as slime's --apply-chat-template makes it
    engine = scripted(CALL, ANSWER)
    async with chat(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, chat_sample(prompt=text), LONG)
    assert engine.requests[0]["input_ids"] == encode(TOKENIZER, text)
    assert sample.response == CALL + OBSERVATION + ANSWER and sample.reward == 1.0


@pytest.mark.parametrize("prompt", [5, [5], ["Capital?"], [{"role": "system"}]])
async def test_a_prompt_that_cannot_be_rendered_discards_the_sample(monkeypatch, prompt):
    sample = await rolled_out(monkeypatch, sample=chat_sample(prompt=prompt))
    assert recorded(sample).stop.value == "bad_sample"


async def test_template_arguments_of_slime_and_of_the_sample_reach_every_turn(monkeypatch):
    tokenizer = tool_tokenizer()
    tokenizer.chat_template += "{{ who or '' }}{{ mood or '' }}"
    engine = scripted(CALL, ANSWER, tokenizer=tokenizer)
    of_all, of_one = {"who": "ALL", "mood": "CALM"}, {"who": "ONE"}
    async with chat(monkeypatch, tokenizer, engine, apply_chat_template_kwargs=of_all) as (args, _):
        sample = await roll_out(args, chat_sample(apply_chat_template_kwargs=of_one), LONG)
    assert decode(tokenizer, engine.requests[0]["input_ids"]).endswith("assistant\nONECALM")
    assert sample.response == CALL + OBSERVATION + "ONECALM" + ANSWER
    assert of_all == {"who": "ALL", "mood": "CALM"} and of_one == {"who": "ONE"}


async def test_a_template_that_opens_a_thought_in_every_turn_is_heard_in_every_turn(monkeypatch):
    tokenizer = tool_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    turns = [turn.removeprefix("<think>") for turn in (CALL, ANSWER)]
    sample = await rolled_out(monkeypatch, call("a") + END, *turns, tokenizer=tokenizer)
    assert recorded(sample).corrections == 1
    assert [search.query for search in recorded(sample).searches] == ["capital of Kenya"]
    assert recorded(sample).score["exact_match"]


async def test_a_template_without_tools_raises_with_the_remedy(monkeypatch):
    tokenizer = tiny_tokenizer()
    assert tokenizer.chat_template == CHATML
    async with chat(monkeypatch, tokenizer, scripted(tokenizer=tokenizer)) as (args, _):
        with pytest.raises(ConfigError, match="SEARCH_R1_TOOL_CALL_FORMAT"):
            await generate_with_search.generate(args, chat_sample(), LONG)


async def test_a_format_that_is_named_is_read_under_any_template(monkeypatch):
    turn = json.dumps({"name": "search", "parameters": {"queries": ["capital of Kenya"]}}) + END
    sample = await rolled_out(monkeypatch, turn, ANSWER, tool_call_format="llama3")
    assert [search.query for search in recorded(sample).searches] == ["capital of Kenya"]
    assert tool_responses(sample.response) == [FOUND]


# --- budgets, aborts, trouble -------------------------------------------------------------------------------------

PROMPT_TOKENS = len(encode(TOKENIZER, render_prompt(TOKENIZER, QUESTION, [SEARCH_TOOL])))
CALL_TOKENS = len(encode(TOKENIZER, CALL))


async def test_a_search_is_skipped_if_its_result_would_not_fit(monkeypatch):
    retriever = FakeRetriever()
    limits = {"max_obs_tokens": 150, "answer_reserve_tokens": 100}
    limits["max_context_length"] = PROMPT_TOKENS + CALL_TOKENS + 150 + 100 - 1
    async with chat(monkeypatch, TOKENIZER, scripted(CALL), retriever, **limits) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
    assert retriever.queries == [] and recorded(sample).stop.value == "no_room_to_observe"
    assert sample.loss_mask == [1] * CALL_TOKENS
    limits["max_context_length"] += 1
    async with chat(monkeypatch, TOKENIZER, scripted(CALL, ANSWER), retriever, **limits) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
    assert len(retriever.queries) == 1 and sample.reward == 1.0


@pytest.mark.parametrize("turn", [raw_call("{") * 3 + END, "<think>endless" + END], ids=["bad-calls", "no-turn"])
async def test_a_correction_that_no_longer_fits_ends_the_trajectory(monkeypatch, turn):
    limit = PROMPT_TOKENS + len(encode(TOKENIZER, turn)) + 30
    sample = await rolled_out(monkeypatch, turn, max_context_length=limit, answer_reserve_tokens=0)
    assert recorded(sample).stop.value == "no_room_to_observe"
    assert sample.response == turn and set(sample.loss_mask) == {1}


async def test_more_bad_calls_than_fit_never_burst_the_context(monkeypatch):
    turn = raw_call("") * 100 + END
    limit = PROMPT_TOKENS + len(encode(TOKENIZER, turn)) + 600
    sample = await rolled_out(monkeypatch, turn, params={**PARAMS, "max_new_tokens": 9999}, max_context_length=limit)
    assert recorded(sample).stop.value == "no_room_to_observe" and len(sample.tokens) <= limit


async def test_a_turn_that_fills_the_context_ends_the_trajectory(monkeypatch):
    sample = await rolled_out(monkeypatch, CALL, max_context_length=PROMPT_TOKENS + 10)
    assert recorded(sample).stop.value == "context_full" and sample.response_length == 10


async def test_a_prompt_that_fills_the_context_with_its_tools_discards_the_sample(monkeypatch):
    sample = await rolled_out(monkeypatch, max_context_length=PROMPT_TOKENS)
    assert recorded(sample).stop.value == "prompt_too_long" and recorded(sample).discarded


async def test_an_observation_keeps_to_its_limit(monkeypatch):
    retriever = FakeRetriever(documents=["x " * 5000] * 3)
    engine = scripted(call("a", "b") + call("c") + END, ANSWER)
    async with chat(monkeypatch, TOKENIZER, engine, retriever, max_obs_tokens=200) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
    assert 150 <= recorded(sample).spans[1].tokens <= 200
    assert len(tool_responses(sample.response)) == 2


async def test_an_abort_during_slow_searches_is_heard_at_once(monkeypatch):
    retriever = FakeRetriever(trouble=lambda _: 5.0)
    async with chat(monkeypatch, TOKENIZER, scripted(call("a", "b") + END), retriever) as (args, state):
        rollout = asyncio.create_task(roll_out(args, chat_sample(), LONG))
        while len(retriever.queries) < 2:  # noqa: ASYNC110  (the fake server has no event to wait for)
            await asyncio.sleep(0.01)
        state.aborted = True
        sample = await asyncio.wait_for(rollout, 2.0)
    assert sample.status is Sample.Status.ABORTED and sample.response == call("a", "b") + END


async def test_an_aborted_sample_that_comes_back_starts_afresh(monkeypatch):
    turns = iter([Turn(CALL), Turn(ANSWER[:9], finish="abort"), Turn(ANSWER)])

    def aborting(request: dict) -> Turn:
        state.aborted = len(engine.requests) == 2
        return next(turns)

    engine = FakeEngine(TOKENIZER, aborting)
    async with chat(monkeypatch, TOKENIZER, engine) as (args, state):
        sample = await roll_out(args, chat_sample(), LONG)
        assert sample.status is Sample.Status.ABORTED and sample.response == CALL + OBSERVATION + ANSWER[:9]
        state.aborted = False
        sample = await roll_out(args, sample, LONG)
    assert sample.response == ANSWER and recorded(sample).searches == []
    assert engine.requests[2]["input_ids"] == engine.requests[0]["input_ids"]


@pytest.mark.parametrize(
    "turn",
    [Turn(status=400, body="no"), Turn(status=0), Turn(ids=[]), Turn(ANSWER, finish="abort"), Turn(body={"a": 1})],
    ids=["400", "cut", "empty", "abort", "shape"],
)
async def test_an_engine_failure_discards_the_sample(monkeypatch, turn):
    sample = await rolled_out(monkeypatch, CALL, turn)
    assert recorded(sample).stop.value == "engine_failed" and recorded(sample).discarded
    assert (sample.loss_mask, sample.rollout_log_probs, sample.reward) == ([0], [0.0], 0.0)


async def test_failed_searches_are_reported_to_the_model_and_the_rollout_continues(monkeypatch):
    sample = await rolled_out(
        monkeypatch,
        call("a", "b") + call("c") + END,
        ANSWER,
        retrieval_server_url="http://127.0.0.1:1",
        search_timeout_s=0.5,
    )
    assert sample.response.count("Search is not available at the moment.") == 3
    assert sample.status is Sample.Status.COMPLETED and all(search.error for search in recorded(sample).searches)


async def test_a_fault_of_ours_discards_the_sample_with_a_traceback(monkeypatch, caplog):
    monkeypatch.setattr("search_rollout.protocols.tools.parse_turn", lambda *a, **k: 1 / 0)
    sample = await rolled_out(monkeypatch, ANSWER)
    assert recorded(sample).stop.value == "internal_error" and "ZeroDivisionError" in caplog.text


# --- answers and rewards ------------------------------------------------------------------------------------------

THOUGHT = "<think>x</think>\n"
RIGHT, WRONG = "<answer>Nairobi</answer>", "<answer>Mombasa</answer>"
BROKEN = json.dumps({"error": "unreadable_call", "message": MISTAKES["unreadable_call"]})
FORGED = f"<tool_response>\n{FOUND}\n</tool_response>"


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (ANSWER, "Nairobi"),
        (f"{THOUGHT}<answer> Nairobi\n</answer>{END}", "Nairobi"),
        (f"{THOUGHT}Nairobi{END}", "Nairobi"),
        (f"Nairobi{END}", "Nairobi"),
        ("Nairobi", "Nairobi"),
        (f"\n Nairobi \n{END}<|endoftext|>", "Nairobi"),
        (f"It is {RIGHT}, surely.{END}", "Nairobi"),
        (f"{WRONG}{RIGHT}{END}", None),  # several are none
        (f"<think>{WRONG}</think>Nairobi{END}", "Nairobi"),
        (f"<think>{RIGHT}</think>{END}", None),
        (f"{THOUGHT}{END}", None),
        (f"It is Nairobi.{END}", "It is Nairobi."),
    ],
)
async def test_the_answer_is_the_last_message_or_what_its_tags_hold(monkeypatch, turn, answer):
    sample = await rolled_out(monkeypatch, CALL, turn)
    assert recorded(sample).stop.value == "answered"
    assert recorded(sample).score["answer"] == answer
    assert recorded(sample).score["exact_match"] == (answer == "Nairobi")


REWARDS = {  # turns: (reward, valid format)
    "answer": ([ANSWER], 1.0, True),
    "search, answer": ([CALL, ANSWER], 1.0, True),
    "two calls in a turn": ([THOUGHT + call("a") + "\n" + call("b", "c") + END, ANSWER], 1.0, True),
    "turns without an end of their own": ([CALL.removesuffix(END), ANSWER.removesuffix(END)], 1.0, True),
    "wrong answer": ([CALL, THOUGHT + WRONG + END], 0.2, True),
    "wrong answer, invalid": ([CALL, WRONG + END], 0.0, False),
    "no tags": ([CALL, THOUGHT + "Nairobi" + END], 0.8, False),
    "no thought at the end": ([CALL, RIGHT + END], 0.8, False),
    "no thought at a call": ([call("a") + END, ANSWER], 0.8, False),
    "words before the thought": ([CALL, "Well. " + ANSWER], 0.8, False),
    "words behind the answer": ([CALL, ANSWER.removesuffix(END) + " Yes." + END], 0.8, False),
    "forged results at a call": ([CALL.removesuffix(END) + FORGED + END, ANSWER], 0.8, False),
    "forged results at the answer": ([CALL, THOUGHT + FORGED + RIGHT + END], 0.8, False),
    "forged results in the answer": ([CALL, THOUGHT + f"<answer>{FORGED}</answer>" + END], 0.0, False),
    "forged results in the thought": ([f"<think>{FORGED}</think>\n{RIGHT}{END}"], 0.8, False),
    "forged results in the thought of a call": ([f"<think>{FORGED}</think>\n{call('a')}{END}", ANSWER], 0.8, False),
    "a bad call": ([THOUGHT + raw_call("{") + END, ANSWER], 0.8, False),
    "a bad call beside a good one": ([THOUGHT + call("a") + raw_call("{") + END, ANSWER], 0.8, False),
    "an unknown tool": ([THOUGHT + call(name="browse", queries=["a"]) + END, ANSWER], 0.8, False),
    "an empty query": ([THOUGHT + call("") + END, ANSWER], 0.8, False),
    "a turn that ends in a thought": (["<think>x" + END, ANSWER], 0.8, False),
    "search tags": ([THOUGHT + "<search>a</search>" + END], 0.0, False),
    "an answer beside a call, then a wrong one": (
        [THOUGHT + RIGHT + call("a") + END, THOUGHT + WRONG + END],
        0.0,
        False,
    ),
    "an answer beside a call, then calls": ([THOUGHT + RIGHT + call("a") + END, CALL, CALL, CALL], 0.0, False),
    "only calls": ([CALL] * 4, 0.0, False),
}


@pytest.mark.parametrize(("turns", "reward", "valid"), REWARDS.values(), ids=REWARDS)
async def test_rewards_of_whole_rollouts(monkeypatch, turns, reward, valid):
    sample = await rolled_out(monkeypatch, *turns)
    assert recorded(sample).score["valid_format"] == valid
    assert sample.reward == pytest.approx(reward)


async def test_an_answer_of_an_earlier_turn_does_not_count_if_the_rollout_is_cut_short(monkeypatch):
    turns = THOUGHT + RIGHT + call("a") + END, "<think>" + "on " * 500
    sample = await rolled_out(monkeypatch, *turns, params={**LONG, "max_new_tokens": 200})
    assert recorded(sample).stop.value == "call_limit"
    assert recorded(sample).score["answer"] is None and sample.reward == 0.0


async def test_a_rollout_that_ends_after_an_observation_has_no_answer(monkeypatch):
    turn = THOUGHT + RIGHT + raw_call("{") + END
    tokens = len(encode(TOKENIZER, turn)) + len(next_turn_ids(TOKENIZER, [{"role": "tool", "content": BROKEN}], END_ID))
    limits = {"max_context_length": PROMPT_TOKENS + tokens, "answer_reserve_tokens": 0}
    sample = await rolled_out(monkeypatch, turn, **limits)
    assert recorded(sample).stop.value == "context_full" and tool_responses(sample.response) == [BROKEN]
    assert recorded(sample).score["answer"] is None and sample.reward == 0.0


@pytest.mark.parametrize(("turn", "reward"), [(THOUGHT + WRONG + END, 0.3), (WRONG + END, 0.05)])
async def test_the_scores_of_the_settings_are_those_of_the_reward(monkeypatch, turn, reward):
    scores = {"format_score": 0.2, "retrieval_score": 0.1, "final_format_score": 0.05}
    sample = await rolled_out(monkeypatch, CALL, turn, **scores)
    assert sample.reward == pytest.approx(reward) and recorded(sample).score["retrieved_gold"]


async def test_a_document_found_by_a_turn_with_a_mistake_earns_no_retrieval_score(monkeypatch):
    sample = await rolled_out(monkeypatch, THOUGHT + call("a") + raw_call("{") + END, THOUGHT + WRONG + END)
    assert FOUND in sample.response and sample.reward == 0.0


async def test_a_message_that_was_cut_off_is_no_answer(monkeypatch):
    engine = FakeEngine(TOKENIZER, [Turn("<think>It is known.</think>Nairobi", finish="length")])
    async with plugin(monkeypatch, TOKENIZER, engine, llm_api_mode="chat") as (args, _):
        sample = await roll_out(args, chat_sample())
    assert recorded(sample).stop.value == "call_limit"
    assert recorded(sample).score["answer"] is None and sample.reward == 0.0


async def test_rewards_come_for_one_sample_and_for_a_list(monkeypatch):
    async with chat(monkeypatch, TOKENIZER, scripted(ANSWER)) as (args, _):
        sample = await roll_out(args, chat_sample(), LONG)
        assert await generate_with_search.reward_func(args, sample) == 1.0
        bare = chat_sample(response="Nairobi")  # no segments were recorded
        assert await generate_with_search.reward_func(args, [sample, bare]) == [1.0, pytest.approx(0.8)]


async def test_many_rollouts_at_once_keep_apart(monkeypatch):
    def echo(request: dict) -> Turn:
        text = decode(TOKENIZER, request["input_ids"])
        number = text.split("number ")[1].split("?")[0]
        return Turn(ANSWER.replace("Nairobi", number) if FOUND in text else calling(f"number {number}"))

    engine, retriever = FakeEngine(TOKENIZER, echo), FakeRetriever()
    async with chat(monkeypatch, TOKENIZER, engine, retriever) as (args, _):
        samples = [
            chat_sample(index=number, prompt=[{"role": "user", "content": f"number {number}?"}], label=str(number))
            for number in range(40)
        ]
        done = await asyncio.gather(*(roll_out(args, sample, LONG) for sample in samples))
    assert [sample.reward for sample in done] == [1.0] * 40
    assert sorted(retriever.queries) == sorted(f"number {number}" for number in range(40))


# --- LOSS_MASK_MODE=simple ----------------------------------------------------------------------------------------


class ScoringEngine(FakeEngine):
    """A FakeEngine that answers `logprob_start_len`: position `p` of request `r`'s prompt has -(100 + r) - p / 1000."""

    @staticmethod
    def prompt_log_prob(request: int, position: int) -> float:
        return -(100 + request) - position / 1000

    async def _generate(self, http_request: web.Request) -> web.StreamResponse:
        response = await super()._generate(http_request)
        request = await http_request.json()
        if not isinstance(response, web.Response) or "logprob_start_len" not in request:
            return response
        answer = json.loads(response.text)
        number, start = int(answer["meta_info"]["id"]), request["logprob_start_len"]
        triples = [
            [self.prompt_log_prob(number, position), token, None]
            for position, token in enumerate(request["input_ids"][start:], start=start)
        ]
        triples[0][0] = None  # as SGLang has it
        answer["meta_info"]["input_token_logprobs"] = triples
        return web.json_response(answer)


COLD = {**LONG, "temperature": 1.0}
MODES = {
    "chat": (TOKENIZER, [CALL, raw_call("{") + END, ANSWER], QUESTION),
    "generate": (tiny_tokenizer(), [SEARCH, "no step at all", XML_ANSWER], "What is the capital of Kenya?\n"),
}
IN_BOTH_MODES = pytest.mark.parametrize("mode", MODES)


def simple(monkeypatch, mode: str, engine: FakeEngine, **settings):
    return plugin(monkeypatch, MODES[mode][0], engine, llm_api_mode=mode, loss_mask_mode="simple", **settings)


def scoring(mode: str, *turns: Turn | str) -> ScoringEngine:
    return ScoringEngine(MODES[mode][0], [turn if isinstance(turn, Turn) else Turn(turn) for turn in turns])


@IN_BOTH_MODES
async def test_simple_trains_everything_with_the_engines_own_log_probs(monkeypatch, mode):
    tokenizer, turns, prompt = MODES[mode]
    engine = scoring(mode, *turns)
    async with simple(monkeypatch, mode, engine) as (args, _):
        sample = await roll_out(args, make_sample(prompt=prompt), COLD)
    assert sample.loss_mask == [1] * sample.response_length
    assert sample.tokens == engine.requests[-1]["input_ids"] + engine.sampled[-1]
    start = len(engine.requests[0]["input_ids"])  # of the response
    assert "logprob_start_len" not in engine.requests[0]
    expected = [engine.log_prob(0, place) for place in range(len(engine.sampled[0]))]
    for number in (1, 2):
        request, first = engine.requests[number], start + len(expected)  # first: of the observation
        assert request["logprob_start_len"] == first - 1
        expected += [engine.prompt_log_prob(number, place) for place in range(first, len(request["input_ids"]))]
        expected += [engine.log_prob(number, place) for place in range(len(engine.sampled[number]))]
    assert sample.rollout_log_probs == expected
    assert [span.kind == "turn" for span in recorded(sample).spans] == [True, False] * 2 + [True]
    assert sample.reward == pytest.approx(0.8)  # one turn was invalid
    assert decode(tokenizer, response_ids(sample)) == sample.response


@IN_BOTH_MODES
async def test_strict_asks_for_no_scores_of_the_prompt(monkeypatch, mode):
    tokenizer, turns, prompt = MODES[mode]
    engine = scoring(mode, *turns)
    async with plugin(monkeypatch, tokenizer, engine, llm_api_mode=mode) as (args, _):
        sample = await roll_out(args, make_sample(prompt=prompt), COLD)
    assert all("logprob_start_len" not in request for request in engine.requests)
    assert sum(sample.loss_mask) == sum(map(len, engine.sampled))


@IN_BOTH_MODES
async def test_simple_drops_an_observation_that_an_abort_left_unscored(monkeypatch, mode):
    _, turns, prompt = MODES[mode]
    engine = scoring(mode)

    def aborting(request: dict) -> Turn:
        state.aborted = len(engine.requests) == 2
        return Turn(turns[0]) if len(engine.requests) == 1 else Turn(turns[-1][:9], finish="abort")

    engine.script = aborting
    async with simple(monkeypatch, mode, engine) as (args, state):
        sample = await roll_out(args, make_sample(prompt=prompt), COLD)
    assert sample.status is Sample.Status.ABORTED
    assert sample.tokens == engine.requests[0]["input_ids"] + engine.sampled[0]
    assert sample.loss_mask == [1] * len(engine.sampled[0]) and len(sample.rollout_log_probs) == len(sample.loss_mask)
    assert [span.kind for span in recorded(sample).spans] == ["turn"]


@IN_BOTH_MODES
@pytest.mark.parametrize("temperature", [1.0, 0.8])
async def test_simple_drops_a_correction_that_fills_the_context(monkeypatch, mode, temperature):
    tokenizer, (_, wrong, answer), prompt = MODES[mode]
    probe = scoring(mode, wrong, answer)
    async with simple(monkeypatch, mode, probe, answer_reserve_tokens=0) as (args, _):
        await roll_out(args, make_sample(prompt=prompt), COLD)
    full = len(probe.requests[1]["input_ids"])  # not a token more than the correction takes
    engine = scoring(mode, wrong)
    limits = {"answer_reserve_tokens": 0, "max_context_length": full}
    async with simple(monkeypatch, mode, engine, **limits) as (args, _):
        sample = await roll_out(args, make_sample(prompt=prompt), {**COLD, "temperature": temperature})
    assert recorded(sample).stop.value == "context_full" and not recorded(sample).discarded
    assert response_ids(sample) == engine.sampled[0] and sample.loss_mask == [1] * len(engine.sampled[0])
    assert decode(tokenizer, engine.sampled[0]) == sample.response


@IN_BOTH_MODES
@pytest.mark.parametrize("sampling", [{"temperature": 0.8}, {"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}])
async def test_simple_has_no_log_probs_where_the_scales_differ_and_says_so_once(monkeypatch, caplog, mode, sampling):
    _, turns, prompt = MODES[mode]
    engine = scoring(mode, *turns, *turns, Turn(status=400))
    with caplog.at_level(logging.WARNING):
        async with simple(monkeypatch, mode, engine) as (args, _):
            samples = [await roll_out(args, make_sample(prompt=prompt), {**COLD, **sampling}) for _ in range(2)]
            discarded = [
                await roll_out(args, make_sample(prompt=bad), {**COLD, **sampling})
                for bad in (prompt, "", "x" * 20_000, [5])  # the engine fails; no prompt; too long; not messages
            ]
    for sample in samples:
        assert sample.loss_mask == [1] * sample.response_length and sample.status is Sample.Status.COMPLETED
    assert [recorded(sample).stop.value for sample in discarded] == [
        "engine_failed", "empty_prompt", "prompt_too_long", "bad_sample"
    ]  # fmt: skip
    assert [sample.rollout_log_probs for sample in (*samples, *discarded)] == [None] * 6  # of one batch: all or none
    assert caplog.text.count("LOSS_MASK_MODE=simple") == 1
    assert not any(request["return_logprob"] or "logprob_start_len" in request for request in engine.requests)


@IN_BOTH_MODES
async def test_simple_discards_samples_with_a_log_prob_where_the_others_have_them(monkeypatch, mode):
    engine = scoring(mode, Turn(status=400))
    prompt = MODES[mode][2]
    async with simple(monkeypatch, mode, engine) as (args, _):
        samples = [await roll_out(args, make_sample(prompt=bad), COLD) for bad in (prompt, "", "x" * 20_000, [5])]
    assert [(sample.loss_mask, sample.rollout_log_probs) for sample in samples] == [([0], [0.0])] * 4


@IN_BOTH_MODES
async def test_simple_without_tracking_asks_for_nothing_and_trains_everything(monkeypatch, mode):
    _, turns, prompt = MODES[mode]
    engine = scoring(mode, *turns)
    async with simple(monkeypatch, mode, engine, track_log_probs=False) as (args, _):
        sample = await roll_out(args, make_sample(prompt=prompt), COLD)
    assert sample.rollout_log_probs is None and sample.loss_mask == [1] * sample.response_length
    assert all(request["return_logprob"] is False for request in engine.requests)


@IN_BOTH_MODES
@pytest.mark.parametrize("fault", ["none", "one short", "other ids", "infinite", "null"])
async def test_simple_discards_what_the_engine_does_not_score(monkeypatch, mode, fault):
    class Faulty(ScoringEngine):
        async def _generate(self, http_request: web.Request) -> web.StreamResponse:
            response = await super()._generate(http_request)
            answer = json.loads(response.text)
            scores = answer["meta_info"].pop("input_token_logprobs", None)
            if scores and fault != "none":
                if fault == "other ids":
                    scores[-1][1] += 1
                elif fault == "infinite":
                    scores[-1][0] = float("-inf")
                elif fault == "null":
                    scores[-1][0] = None
                answer["meta_info"]["input_token_logprobs"] = scores[:-1] if fault == "one short" else scores
            return web.json_response(answer)

    tokenizer, turns, prompt = MODES[mode]
    engine = Faulty(tokenizer, [Turn(turn) for turn in turns])
    async with simple(monkeypatch, mode, engine) as (args, _):
        sample = await roll_out(args, make_sample(prompt=prompt), COLD)
    assert recorded(sample).stop.value == "engine_failed" and recorded(sample).discarded
    assert len(engine.requests) == 2


async def test_an_unscored_end_of_turn_that_the_template_supplies_is_scored_with_the_observation(monkeypatch):
    engine = scoring("chat", CALL.removesuffix(END), ANSWER)
    async with simple(monkeypatch, "chat", engine) as (args, _):
        sample = await roll_out(args, make_sample(prompt=QUESTION), COLD)
    first = len(engine.requests[0]["input_ids"]) + len(engine.sampled[0])
    assert engine.requests[1]["input_ids"][first] == END_ID and engine.requests[1]["logprob_start_len"] == first - 1
    assert sample.rollout_log_probs[len(engine.sampled[0])] == engine.prompt_log_prob(1, first)
    observation = next_turn_ids(TOKENIZER, [{"role": "tool", "content": FOUND}], None)
    assert engine.requests[1]["input_ids"][first:] == observation
