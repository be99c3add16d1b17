"""Rollouts turn by turn: what is sent to the engine, what ends a trajectory, what the Sample holds."""

import asyncio
import copy
import time

import pytest
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import ANSWER, PARAMS, SEARCH, make_sample, plugin, recorded, response_ids, roll_out
from slime.utils.types import Sample

import generate_with_search
from search_rollout.config import ConfigError
from search_rollout.protocols.xml import CORRECTION

TOKENIZER = tiny_tokenizer()


def scripted(*texts: str) -> FakeEngine:
    return FakeEngine(TOKENIZER, [Turn(text) for text in texts])


async def test_a_search_and_an_answer_make_a_completed_sample_with_reward_one(monkeypatch):
    engine, retriever = scripted(SEARCH, ANSWER), FakeRetriever()
    async with plugin(monkeypatch, TOKENIZER, engine, retriever) as (args, _):
        sample = await roll_out(args, make_sample())
    assert sample.status is Sample.Status.COMPLETED
    assert sample.reward == 1.0
    assert retriever.queries == ["capital of Kenya"]
    assert "The capital of Kenya is Nairobi." in sample.response
    assert recorded(sample).stop.value == "answered"
    assert recorded(sample).score["valid_format"]
    assert sample.weight_versions == ["7", "7"]


async def test_every_call_is_sent_exactly_the_ids_so_far(monkeypatch):
    engine = scripted(SEARCH, SEARCH, ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
    prompt = TOKENIZER.encode("What is the capital of Kenya?\n")
    assert engine.requests[0]["input_ids"] == prompt
    for earlier, later, sampled in zip(engine.requests, engine.requests[1:], engine.sampled, strict=False):
        assert later["input_ids"][: len(earlier["input_ids"]) + len(sampled)] == earlier["input_ids"] + sampled
    assert sample.tokens == engine.requests[-1]["input_ids"] + engine.sampled[-1]


async def test_our_stops_join_the_callers_and_nothing_shared_is_changed(monkeypatch):
    params = {**PARAMS, "stop": ["DONE"], "top_p": 0.9, "sampling_seed": 3}
    untouched = copy.deepcopy(params)
    engine = scripted(ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        await generate_with_search.generate(args, make_sample(), params)
    sent = engine.requests[0]["sampling_params"]
    assert params == untouched
    assert sent["stop"] == ["DONE", "</search>", "</answer>"]
    assert (sent["temperature"], sent["top_p"], sent["sampling_seed"]) == (0.8, 0.9, 3)
    assert sent["no_stop_trim"] is True and sent["skip_special_tokens"] is False


@pytest.mark.parametrize("stop", [None, "DONE", [], ("A", "</answer>")])
async def test_stops_of_every_shape_are_merged(monkeypatch, stop):
    engine = scripted(ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        await roll_out(args, make_sample(), {**PARAMS, "stop": stop})
    sent = engine.requests[0]["sampling_params"]["stop"]
    assert sent.count("</search>") == sent.count("</answer>") == 1


async def test_after_three_action_turns_a_search_in_the_last_turn_ends_the_trajectory(monkeypatch):
    engine, retriever = scripted(SEARCH, SEARCH, SEARCH, SEARCH), FakeRetriever()
    async with plugin(monkeypatch, TOKENIZER, engine, retriever) as (args, _):
        sample = await roll_out(args, make_sample())
    assert len(engine.requests) == 4
    assert len(retriever.queries) == 3  # the fourth would never be read
    assert sample.status is Sample.Status.TRUNCATED
    assert recorded(sample).stop.value == "turns_used"
    assert sample.loss_mask[-1] == 1  # the model's words, not an observation, stand last
    assert sample.reward == 0.0


async def test_an_answer_in_the_answer_only_turn_counts(monkeypatch):
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH, SEARCH, SEARCH, ANSWER)) as (args, _):
        sample = await roll_out(args, make_sample())
    assert sample.reward == 1.0


async def test_an_invalid_step_is_corrected_inside_the_models_turn(monkeypatch):
    engine = scripted("no tags at all", ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
    assert f"no tags at all\n{CORRECTION}\n<think>" in sample.response
    assert recorded(sample).corrections == 1
    assert sample.reward == pytest.approx(1.0 - 0.2)  # right, in an invalid format


async def test_a_turn_that_the_model_ended_is_corrected_by_a_user_turn_of_the_template(monkeypatch):
    engine = scripted("Nairobi.<|im_end|>", ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
    expected = f"Nairobi.<|im_end|>\n<|im_start|>user\n{CORRECTION}<|im_end|>\n<|im_start|>assistant\n{ANSWER}"
    assert sample.response == expected
    ended = response_ids(sample).index(TOKENIZER.eos_token_id)
    assert sample.loss_mask[ended] == 1  # the end of turn was sampled, so it is trained
    assert sample.loss_mask[ended + 1] == 0


async def test_an_answer_inside_an_unclosed_think_is_an_invalid_step(monkeypatch):
    engine = scripted("<think>perhaps <answer>Nairobi</answer>", ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
    assert recorded(sample).corrections == 1 and len(engine.requests) == 2


async def test_a_prompt_that_ends_in_think_opens_the_first_turn(monkeypatch):
    engine = scripted("It is known.</think><answer>Nairobi</answer>")
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample(prompt="Question? <think>\n"))
    assert sample.reward == 1.0 and recorded(sample).score["valid_format"]


async def test_a_call_that_reaches_its_token_limit_ends_the_trajectory(monkeypatch):
    engine = scripted("<think>" + "on and on " * 40)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample(), {**PARAMS, "max_new_tokens": 20})
    assert recorded(sample).stop.value == "call_limit"
    assert sample.status is Sample.Status.TRUNCATED
    assert sample.loss_mask == [1] * 20


async def test_a_search_is_skipped_if_its_result_would_not_fit(monkeypatch):
    prompt = TOKENIZER.encode("What is the capital of Kenya?\n")
    action = TOKENIZER.encode(SEARCH)
    limit = len(prompt) + len(action) + 64 + 32 - 1  # one token short of observation and reserve
    retriever = FakeRetriever()
    settings = {"max_context_length": limit, "max_obs_tokens": 64, "answer_reserve_tokens": 32}
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH), retriever, **settings) as (args, _):
        sample = await roll_out(args, make_sample())
    assert retriever.queries == []
    assert recorded(sample).stop.value == "no_room_to_observe"
    settings["max_context_length"] += 1
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH, ANSWER), retriever, **settings) as (args, _):
        await roll_out(args, make_sample())
    assert len(retriever.queries) == 1


async def test_a_call_is_never_asked_for_more_than_the_context_holds(monkeypatch):
    engine = scripted("<think>" + "word " * 60)
    prompt = TOKENIZER.encode("What is the capital of Kenya?\n")
    async with plugin(monkeypatch, TOKENIZER, engine, max_context_length=len(prompt) + 10) as (args, _):
        sample = await roll_out(args, make_sample())
    assert engine.requests[0]["sampling_params"]["max_new_tokens"] == 10
    assert recorded(sample).stop.value == "context_full"


@pytest.mark.parametrize(("evaluation", "expected"), [(False, 30), (True, 40)])
async def test_slimes_own_context_limits_hold_in_training_and_evaluation(monkeypatch, evaluation, expected):
    prompt = TOKENIZER.encode("What is the capital of Kenya?\n")
    limits = {"rollout_max_context_len": len(prompt) + 30, "eval_max_context_len": len(prompt) + 40}
    engine = scripted(ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine, **limits) as (args, _):
        await roll_out(args, make_sample(), evaluation=evaluation)
    assert engine.requests[0]["sampling_params"]["max_new_tokens"] == expected


async def test_a_prompt_that_fills_the_context_discards_the_sample(monkeypatch):
    engine = scripted()
    async with plugin(monkeypatch, TOKENIZER, engine, max_context_length=5) as (args, _):
        sample = await roll_out(args, make_sample())
    assert engine.requests == []
    assert recorded(sample).stop.value == "prompt_too_long" and recorded(sample).discarded


async def test_a_prompt_of_messages_is_rendered_by_the_template(monkeypatch):
    messages = [{"role": "user", "content": "Capital of Kenya?"}]
    engine = scripted(ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample(prompt=messages))
    sent = TOKENIZER.decode(engine.requests[0]["input_ids"])
    assert sent == "<|im_start|>user\nCapital of Kenya?<|im_end|>\n<|im_start|>assistant\n"
    assert sample.prompt == messages  # slime's own prompt stays as it was


async def test_without_log_probs_the_ids_still_come_from_the_engine(monkeypatch):
    engine = scripted(SEARCH, ANSWER)
    async with plugin(monkeypatch, TOKENIZER, engine, track_log_probs=False) as (args, _):
        sample = await roll_out(args, make_sample())
    assert sample.rollout_log_probs is None
    assert all(request["return_logprob"] is False for request in engine.requests)
    assert sample.tokens == engine.requests[-1]["input_ids"] + engine.sampled[-1]
    assert sample.reward == 1.0


async def test_the_router_gets_a_session_key_only_if_its_policy_uses_one(monkeypatch):
    for policy, expected in (("consistent_hashing", "abc"), ("manual", "abc"), ("cache_aware", None)):
        engine = scripted(ANSWER)
        async with plugin(monkeypatch, TOKENIZER, engine, router_policy=policy) as (args, _):
            await roll_out(args, make_sample(session_id="abc"))
        assert engine.headers[0].get("X-SMG-Routing-Key") == expected


async def test_a_failed_search_is_reported_to_the_model_and_the_rollout_continues(monkeypatch):
    async with plugin(
        monkeypatch,
        TOKENIZER,
        scripted(SEARCH, ANSWER),
        retrieval_server_url="http://127.0.0.1:1",
        search_timeout_s=0.5,
    ) as (
        args,
        _,
    ):
        sample = await roll_out(args, make_sample())
    assert "Search is not available" in sample.response
    assert recorded(sample).searches[0].error
    assert sample.status is Sample.Status.COMPLETED


async def test_search_time_counts_as_time_outside_the_engine(monkeypatch):
    retriever = FakeRetriever(trouble=lambda _: 0.2)
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH, ANSWER), retriever) as (args, _):
        sample = await roll_out(args, make_sample())
    assert 0.2 <= sample.non_generation_time < 5


async def test_nothing_is_asked_of_the_engine_after_slime_aborted(monkeypatch):
    engine = scripted()
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, state):
        state.aborted = True
        sample = await roll_out(args, make_sample())
    assert sample.status is Sample.Status.ABORTED and engine.requests == []


async def test_an_abort_during_a_slow_search_is_heard_at_once(monkeypatch):
    retriever = FakeRetriever(trouble=lambda _: 60.0)
    async with plugin(monkeypatch, TOKENIZER, scripted(SEARCH), retriever) as (args, state):
        rollout = asyncio.create_task(roll_out(args, make_sample()))
        while not retriever.queries:  # noqa: ASYNC110  (the fake server has no event to wait for)
            await asyncio.sleep(0.01)
        state.aborted, began = True, time.monotonic()
        sample = await rollout
        assert time.monotonic() - began < 20.0
    assert sample.status is Sample.Status.ABORTED


async def test_an_aborted_sample_that_comes_back_starts_afresh(monkeypatch):
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(SEARCH[:20], finish="abort"), Turn(ANSWER)])
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, state):

        def aborting(request: dict) -> Turn:
            state.aborted = len(engine.requests) == 2
            return next(turns)

        turns, engine.script = iter([Turn(SEARCH), Turn(SEARCH[:20], finish="abort"), Turn(ANSWER)]), aborting
        sample = await roll_out(args, make_sample())
        assert sample.status is Sample.Status.ABORTED and sample.response_length > 0
        state.aborted = False
        sample = await roll_out(args, sample)
    assert sample.status is Sample.Status.COMPLETED
    assert sample.response == ANSWER and sample.loss_mask == [1] * sample.response_length
    assert engine.requests[2]["input_ids"] == engine.requests[0]["input_ids"]
    assert sample.weight_versions == ["7"]


async def test_an_abort_that_slime_did_not_ask_for_discards_the_sample(monkeypatch):
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH, finish="abort")])
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
    assert recorded(sample).discarded and sample.status is Sample.Status.TRUNCATED


@pytest.mark.parametrize(
    "turn",
    [
        Turn(status=400, body={"error": "too long"}),
        Turn(status=503, body="busy"),
        Turn(status=200, body="not json"),
        Turn(status=200, body={"text": "no meta_info"}),
        Turn(status=0),
        Turn(ids=[]),
        Turn(
            body={
                "output_ids": [5],
                "meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-1, 6, None]]},
            }
        ),
        Turn(body={"output_ids": [5], "meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": None}}),
        Turn(
            body='{"output_ids": [5], "meta_info": {"finish_reason": {"type": "stop"},'
            ' "output_token_logprobs": [[NaN, 5, null]]}}'
        ),
    ],
    ids=["400", "503", "not-json", "no-meta", "cut", "empty", "ids-disagree", "no-logprobs", "nan"],
)
async def test_an_engine_failure_discards_the_sample(monkeypatch, turn):
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), turn])
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
        assert await generate_with_search.reward_func(args, sample) == 0.0
    assert recorded(sample).stop.value == "engine_failed" and recorded(sample).discarded
    assert (sample.status, sample.loss_mask, sample.rollout_log_probs) == (Sample.Status.TRUNCATED, [0], [0.0])
    assert sample.tokens[:-1] == engine.requests[0]["input_ids"]
    assert sample.remove_sample


async def test_a_reply_that_the_engine_cut_short_is_requested_again(monkeypatch):
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(ANSWER[:9], finish="abort"), Turn(ANSWER)])
    async with plugin(monkeypatch, TOKENIZER, engine, engine_retries=1) as (args, _):
        sample = await roll_out(args, make_sample())
    assert sample.reward == 1.0 and ANSWER[:9] + ANSWER not in sample.response
    assert engine.requests[1] == engine.requests[2]


async def test_an_engine_failure_after_slimes_abort_is_an_abort(monkeypatch):
    engine = FakeEngine(TOKENIZER, [])

    def shutting_down(request: dict) -> Turn:
        state.aborted = True
        return Turn(status=503, body="shutting down")

    engine.script = shutting_down
    async with plugin(monkeypatch, TOKENIZER, engine, engine_retries=50) as (args, state):
        sample = await roll_out(args, make_sample())
    assert sample.status is Sample.Status.ABORTED and not recorded(sample).discarded
    assert len(engine.requests) == 1


async def test_transient_engine_failures_are_retried(monkeypatch):
    monkeypatch.setattr("search_rollout.engine.client.PAUSE_S", 0.01)
    engine = FakeEngine(TOKENIZER, [Turn(status=503, body="busy"), Turn(status=0), Turn(ANSWER)])
    async with plugin(monkeypatch, TOKENIZER, engine, engine_retries=3) as (args, _):
        sample = await roll_out(args, make_sample())
    assert sample.reward == 1.0 and len(engine.requests) == 3


async def test_a_refused_request_is_not_tried_again(monkeypatch):
    engine = FakeEngine(TOKENIZER, [Turn(status=400, body="no")] * 4)
    async with plugin(monkeypatch, TOKENIZER, engine, engine_retries=3) as (args, _):
        await roll_out(args, make_sample())
    assert len(engine.requests) == 1


async def test_a_fault_of_ours_is_logged_with_its_traceback_and_discards_the_sample(monkeypatch, caplog):
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER)) as (args, _):
        monkeypatch.setattr("search_rollout.protocols.xml.parse_turn", lambda *a, **k: 1 / 0)
        sample = await roll_out(args, make_sample())
    assert recorded(sample).stop.value == "internal_error"
    assert "ZeroDivisionError" in caplog.text


async def test_a_wrong_setting_raises_instead_of_giving_up_every_sample(monkeypatch):
    async with plugin(monkeypatch, TOKENIZER, scripted(), topk=0) as (args, _):
        with pytest.raises(ConfigError, match="topk"):
            await generate_with_search.generate(args, make_sample(), PARAMS)


REPLAYED = {**PARAMS, "top_p": 0.9, "custom_params": {"return_top_p_token_ids": True}}


@pytest.mark.parametrize(
    "setting", [{"loss_mask_mode": "simple"}, {"track_log_probs": False}, {"token_tracking_mode": "router_radix"}]
)
async def test_top_p_replay_is_refused_in_words_where_it_cannot_be_exact(monkeypatch, setting):
    async with plugin(monkeypatch, TOKENIZER, scripted(), rollout_top_p=0.9, **setting) as (args, _):
        with pytest.raises(ConfigError, match=r"--rollout-top-p.*Use these"):
            await generate_with_search.generate(args, make_sample(), REPLAYED)


async def test_under_top_p_replay_an_aborted_sample_is_restarted(monkeypatch):
    def aborting(request: dict) -> Turn:
        state.aborted = len(engine.requests) == 1
        return Turn(ANSWER[:20], finish="abort") if state.aborted else Turn(ANSWER)

    engine = FakeEngine(TOKENIZER, aborting)
    async with plugin(monkeypatch, TOKENIZER, engine, partial_rollout=True) as (args, state):
        sample = await roll_out(args, make_sample(), REPLAYED)
        assert sample.status is Sample.Status.ABORTED and sample.rollout_top_p_token_ids is None
        state.aborted = False
        sample = await roll_out(args, sample, REPLAYED)
    assert sample.response == ANSWER
    assert len(sample.rollout_top_p_token_offsets) == sample.response_length + 1


async def test_expert_replay_is_refused_in_words(monkeypatch):
    async with plugin(monkeypatch, TOKENIZER, scripted(), use_rollout_routing_replay=True) as (args, _):
        with pytest.raises(ConfigError, match="routing-replay"):
            await generate_with_search.generate(args, make_sample(), PARAMS)


async def test_a_template_that_opens_a_thought_in_every_turn_is_heard_after_a_correction_too(monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    )
    engine = FakeEngine(
        tokenizer, [Turn("oh</think><|im_end|>"), Turn("perhaps <answer>x</answer>"), Turn("y</think>" + ANSWER)]
    )
    async with plugin(monkeypatch, tokenizer, engine) as (args, _):
        sample = await roll_out(args, make_sample(prompt=[{"role": "user", "content": "Capital?"}]))
    assert recorded(sample).corrections == 2 and recorded(sample).score["answer"] == "Nairobi"


async def test_a_correction_that_no_longer_fits_ends_the_trajectory(monkeypatch):
    prompt = len(TOKENIZER.encode("What is the capital of Kenya?\n"))
    async with plugin(
        monkeypatch, TOKENIZER, scripted("oh"), max_context_length=prompt + 20, answer_reserve_tokens=0
    ) as (args, _):
        sample = await roll_out(args, make_sample())
    assert recorded(sample).stop.value == "no_room_to_observe" and sample.loss_mask == [1] * sample.response_length


async def test_metadata_that_siblings_share_is_left_alone(monkeypatch):
    shared = {"source": "nq"}
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER)) as (args, _):
        sample = await roll_out(args, make_sample(metadata=shared))
    assert shared == {"source": "nq"} and sample.metadata["source"] == "nq"


@pytest.mark.parametrize("metadata", [None, float("nan")])
async def test_metadata_of_early_slime_is_replaced_by_a_dict(monkeypatch, metadata):
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER)) as (args, _):
        sample = await roll_out(args, make_sample(metadata=metadata))
    assert recorded(sample).stop.value == "answered"


async def test_rewards_come_for_one_sample_and_for_a_list(monkeypatch):
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER)) as (args, _):
        sample = await roll_out(args, make_sample())
        assert await generate_with_search.reward_func(args, sample) == 1.0
        assert await generate_with_search.reward_func(args, [sample, make_sample(response=None)]) == [1.0, 0.0]


async def test_a_response_without_segments_is_parsed(monkeypatch):
    text = f"{SEARCH}\n\n<information>Doc 1 Nairobi</information>\n\n{ANSWER}"
    async with plugin(monkeypatch, TOKENIZER, scripted()) as (args, _):
        assert await generate_with_search.reward_func(args, make_sample(response=text)) == 1.0


async def test_many_rollouts_at_once_keep_apart(monkeypatch):
    def echo(request: dict) -> Turn:  # answers with the last word of the prompt
        text = TOKENIZER.decode(request["input_ids"])
        return Turn(SEARCH if "<information>" not in text else f"<think>x</think><answer>{text.split('?')[0]}</answer>")

    engine = FakeEngine(TOKENIZER, echo)
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        samples = [make_sample(index=n, prompt=f"{n}?", label=str(n)) for n in range(40)]
        done = await asyncio.gather(*(roll_out(args, sample) for sample in samples))
    assert [sample.reward for sample in done] == [1.0] * 40


ONE_UPDATE = {
    "custom_advantage_function_path": None,  # slime from v0.3.0 on
    "rollout_batch_size": 4,
    "n_samples_per_prompt": 2,
    "global_batch_size": 8,
    "track_log_probs": "false",
}


@pytest.mark.parametrize("computed", [{"global_batch_size": 4}, {"keep_old_actor": True}, {"debug_rollout_only": True}])
async def test_a_training_that_would_lack_log_probabilities_is_refused_with_the_remedy(monkeypatch, computed):
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER), **ONE_UPDATE) as (args, _):
        with pytest.raises(ConfigError, match="TRACK_LOG_PROBS=true, or GLOBAL_BATCH_SIZE"):
            await generate_with_search.generate(args, make_sample(), PARAMS)
        vars(args).update(computed)
        assert (await roll_out(args, make_sample())).rollout_log_probs is None


async def test_an_older_slime_computes_log_probabilities_itself(monkeypatch):
    older = {name: value for name, value in ONE_UPDATE.items() if name != "custom_advantage_function_path"}
    async with plugin(monkeypatch, TOKENIZER, scripted(ANSWER), **older) as (args, _):
        assert (await roll_out(args, make_sample())).rollout_log_probs is None
