"""The demo's engine against plain forward passes of the same tiny model; its thread, batching and cache are real."""

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from demo_helpers import (
    WAIT_S,
    Steps,
    complete,
    kind_of_end,
    plain_greedy,
    plain_log_probs,
    request,
    scripted_tokens,
    some_ids,
    tiny_model,
)
from fakes import tiny_tokenizer

from demo.engine import Engine, SamplingParams, _nucleus, sample
from demo.grpo import Lot, TrainSample, masked_log_probs
from demo.prefix_tree import merge


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_model(tokenizer)


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Iterator[Engine]:
    with Engine(model, tokenizer, dtype=torch.float32, slots=4, max_length=128) as engine:
        yield engine


# --- what is computed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_replies_to_prompts_of_different_lengths_equal_a_plain_loop(tokenizer: Any, tied: bool) -> None:
    model = tiny_model(tokenizer, tied=tied)
    prompts = [some_ids(length, seed=length) for length in (1, 9, 30, 60)]
    with Engine(model, tokenizer, dtype=torch.float32, slots=4, max_length=128) as engine:
        replies = complete(engine, *(request(prompt, temperature=0.0) for prompt in prompts))
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply.output_ids == plain_greedy(model, prompt, 8)
        assert reply.log_probs == pytest.approx(
            plain_log_probs(model, prompt + reply.output_ids, len(prompt)), abs=1e-4
        )


def test_a_greedy_reply_equals_that_of_transformers_generate(engine: Engine, model: Any) -> None:
    prompt = some_ids(20)
    (reply,) = complete(engine, request(prompt, temperature=0.0, ignore_eos=False))
    generated = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 20, dtype=torch.long), max_new_tokens=8, do_sample=False
    )
    assert reply.output_ids == generated[0, 20:].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_logits_over_the_temperature(engine: Engine, model: Any, temperature: float) -> None:
    prompts = [some_ids(length, seed=length) for length in (5, 17, 33)]
    replies = complete(engine, *(request(prompt, temperature=temperature, max_new_tokens=20) for prompt in prompts))
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = plain_log_probs(model, prompt + reply.output_ids, len(prompt), temperature)
        assert len(reply.log_probs) == 20
        assert reply.log_probs == pytest.approx(expected, abs=1e-4)


def test_a_conversation_computes_only_what_is_new_in_each_turn(engine: Engine, model: Any) -> None:
    ids = some_ids(30)
    cached = []
    for turn in range(3):
        (reply,) = complete(engine, request(ids, max_new_tokens=10))
        assert reply.log_probs == pytest.approx(plain_log_probs(model, ids + reply.output_ids, len(ids)), abs=1e-4)
        cached.append(reply.cached_tokens)
        ids = ids + reply.output_ids + some_ids(7, seed=turn)
    # The last sampled token of a turn was never computed: 30 + 10 - 1, and 17 more a turn.
    assert cached == [0, 39, 56]


def test_conversations_that_share_fewer_slots_stay_exact(model: Any, tokenizer: Any) -> None:
    conversations = [some_ids(10 + number, seed=number % 2) for number in range(5)]  # two families that share prefixes
    with Engine(model, tokenizer, dtype=torch.float32, slots=3, max_length=128) as engine:
        for turn in range(3):
            replies = complete(engine, *(request(ids, max_new_tokens=6) for ids in conversations))
            for number, reply in enumerate(replies):
                ids = conversations[number] + reply.output_ids
                assert reply.log_probs == pytest.approx(plain_log_probs(model, ids, len(ids) - 6), abs=1e-4)
                conversations[number] = ids + some_ids(4, seed=100 * turn + number)


def test_prompts_admitted_together_do_not_copy_keys_that_are_not_there_yet(engine: Engine, model: Any) -> None:
    complete(engine, *(request(some_ids(40, seed=9 + number)) for number in range(4)))  # other keys in every slot
    shared = some_ids(25)
    prompts = [shared + some_ids(5, seed=number) for number in range(1, 5)]
    for prompt, reply in zip(prompts, complete(engine, *map(request, prompts)), strict=True):
        assert reply.log_probs == pytest.approx(plain_log_probs(model, prompt + reply.output_ids, 30), abs=1e-4)


def test_samples_of_one_prompt_compute_it_once(engine: Engine, model: Any) -> None:
    prompt = some_ids(30)
    replies = complete(engine, *(request(prompt, name=str(number)) for number in range(6)))  # there are 4 slots
    assert sorted(reply.cached_tokens for reply in replies) == [0, 29, 29, 29, 29, 29]
    assert len({tuple(reply.output_ids) for reply in replies}) > 1  # sampled, each for itself
    for reply in replies:
        assert reply.log_probs == pytest.approx(plain_log_probs(model, prompt + reply.output_ids, 30), abs=1e-4)


def test_more_requests_than_slots_all_finish_with_their_own_replies(engine: Engine, model: Any) -> None:
    prompts = [some_ids(3 + number, seed=number) for number in range(11)]
    replies = complete(
        engine, *(request(prompt, temperature=0.0, max_new_tokens=3 + number) for number, prompt in enumerate(prompts))
    )
    for number, reply in enumerate(replies):
        assert reply.output_ids == plain_greedy(model, prompts[number], 3 + number)


def test_in_bfloat16_engine_and_trainer_agree_to_rounding(model: Any, tokenizer: Any) -> None:
    prompts = [some_ids(length, seed=length) for length in (5, 20, 40)]
    with Engine(model, tokenizer, dtype=torch.bfloat16, slots=4, max_length=128) as engine:
        replies = complete(engine, *(request(prompt, max_new_tokens=40) for prompt in prompts))
    samples = [
        TrainSample(prompt + reply.output_ids, [1] * 40, reply.log_probs)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    rollout = torch.tensor([log_prob for sample in samples for log_prob in sample.rollout_log_probs])
    lots = [Lot([sample], merge([sample.tokens])) for sample in samples]
    with torch.no_grad():
        difference = (masked_log_probs(model, lots, torch.bfloat16) - rollout).abs().mean()
        to_float32 = (masked_log_probs(model, lots, torch.float32) - rollout).abs().mean()
    # Measured: .001 and .005. With logits rounded to bfloat16 in the engine alone: .003 and .0056.
    assert 0 < difference < 0.02
    assert difference < 0.4 * to_float32


# --- sampling -----------------------------------------------------------------------------------------------------

PROBABILITIES = (0.15, 0.5, 0.05, 0.3)  # of tokens 0 … 3


def frequencies(count: int = 20_000, **params: Any) -> list[float]:
    """How often each token is sampled; the standard deviation is at most sqrt(0.25 / 20000) = 0.0035."""
    logits = torch.tensor(PROBABILITIES).log().expand(count, 4)
    random = torch.Generator().manual_seed(5)
    tokens, _ = sample(logits, [SamplingParams(**params)] * count, random)
    return [tokens.count(token) / count for token in range(4)]


def test_tokens_are_sampled_as_often_as_they_are_probable() -> None:
    assert frequencies() == pytest.approx(PROBABILITIES, abs=0.014)


def test_the_temperature_flattens_the_distribution() -> None:
    # Temperature 2 takes square roots: .387, .707, .224, .548 of a sum of 1.866.
    assert frequencies(temperature=2.0) == pytest.approx([0.2076, 0.3790, 0.1199, 0.2936], abs=0.014)


def test_top_p_keeps_only_the_nucleus() -> None:
    # .5 alone does not reach .7, .5 + .3 does: token 1 with .5 / .8 and token 3 with .3 / .8.
    found = frequencies(top_p=0.7)
    assert found == pytest.approx([0.0, 0.625, 0.0, 0.375], abs=0.014)
    assert found[0] == found[2] == 0.0


def test_top_k_keeps_only_the_k_likeliest() -> None:
    found = frequencies(top_k=3)
    assert found == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95], abs=0.014)
    assert found[2] == 0.0


def test_the_nucleus_is_the_smallest_set_that_holds_top_p() -> None:
    log_probs = torch.tensor(PROBABILITIES).log()
    inf = math.inf

    def kept(**params: Any) -> list[float]:
        return _nucleus(log_probs, SamplingParams(**params)).tolist()

    assert kept(top_p=0.45) == pytest.approx([-inf, math.log(0.5), -inf, -inf])
    assert kept(top_p=0.9) == pytest.approx([math.log(0.15), math.log(0.5), -inf, math.log(0.3)])
    assert kept(top_p=0.9, top_k=2) == pytest.approx([-inf, math.log(0.5), -inf, math.log(0.3)])
    assert kept(top_k=9) == pytest.approx(log_probs.tolist())


def test_log_probs_are_taken_before_top_p_and_greedy_ones_at_temperature_1() -> None:
    logits = torch.tensor(PROBABILITIES).log().expand(3, 4)
    params = [SamplingParams(top_p=0.1), SamplingParams(temperature=0.0), SamplingParams(temperature=0.5, top_k=1)]
    tokens, log_probs = sample(logits, params, torch.Generator().manual_seed(0))
    assert tokens == [1, 1, 1]
    # At temperature .5 probabilities are squared: .25 of .0225 + .25 + .0025 + .09 = .365.
    assert log_probs == pytest.approx([math.log(0.5), math.log(0.5), math.log(0.25 / 0.365)])


def test_a_token_of_probability_zero_is_never_sampled() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf]).expand(1000, 3)
    tokens, _ = sample(logits, [SamplingParams()] * 1000, torch.Generator().manual_seed(0))
    assert set(tokens) == {1}


def test_top_k_of_one_is_greedy(engine: Engine, model: Any) -> None:
    prompt = some_ids(12)
    (reply,) = complete(engine, request(prompt, top_k=1))
    assert reply.output_ids == plain_greedy(model, prompt, 8)


def test_the_seed_decides_what_is_sampled(model: Any, tokenizer: Any) -> None:
    def sampled(seed: int) -> list[int]:
        with Engine(model, tokenizer, dtype=torch.float32, slots=2, max_length=64, seed=seed) as engine:
            return complete(engine, request(some_ids(5)))[0].output_ids

    assert sampled(1) == sampled(1) != sampled(2)


# --- how a reply ends ---------------------------------------------------------------------------------------------


def test_a_stop_string_over_several_tokens_ends_the_reply(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("a<search>capital</search>")
    assert len(tokenizer.encode("</search>")) > 1
    with scripted_tokens(monkeypatch, ids + some_ids(9)):
        (reply,) = complete(engine, request(some_ids(4), max_new_tokens=30, stop=["</answer>", "</search>"]))
    assert reply.output_ids == ids
    assert reply.log_probs == [-0.5] * len(ids)
    assert reply.finish_reason == {"type": "stop", "matched": "</search>"}


def test_a_last_token_that_holds_more_than_the_stop_string_is_kept_whole(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    overshoot = tokenizer.convert_tokens_to_ids("><")
    ids = [*tokenizer.encode("</search"), overshoot]
    with scripted_tokens(monkeypatch, ids + some_ids(9)):
        (reply,) = complete(engine, request(some_ids(4), max_new_tokens=30, stop="</search>"))
    assert reply.output_ids == ids
    assert reply.finish_reason == {"type": "stop", "matched": "</search>"}


def test_a_stop_string_beyond_ascii_is_found_although_its_bytes_are_tokens_of_their_own(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("。")
    assert len(ids) == 3  # one character, three bytes, three tokens
    with scripted_tokens(monkeypatch, ids + some_ids(9)):
        (reply,) = complete(engine, request(some_ids(4), max_new_tokens=10, stop=["。"]))
    assert reply.output_ids == ids


def test_a_stop_string_of_the_prompt_does_not_count(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_tokens(monkeypatch, some_ids(9)):
        (reply,) = complete(engine, request(tokenizer.encode("</search>"), max_new_tokens=5, stop=["</search>"]))
    assert reply.finish_reason == {"type": "length", "length": 5}


def test_the_end_of_turn_token_ends_the_reply_and_is_kept(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    eos = tokenizer.eos_token_id
    with scripted_tokens(monkeypatch, [7, 8, eos, 9]):
        (reply,) = complete(engine, request(some_ids(4), ignore_eos=False))
    assert reply.output_ids == [7, 8, eos]
    assert reply.finish_reason == {"type": "stop", "matched": eos}


def test_ignore_eos_goes_on(engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_tokens(monkeypatch, [7, tokenizer.eos_token_id, 9, 10]):
        (reply,) = complete(engine, request(some_ids(4), max_new_tokens=4))
    assert reply.output_ids == [7, tokenizer.eos_token_id, 9, 10]


def test_a_stop_token_ends_the_reply(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_tokens(monkeypatch, [7, 8, 9]):
        (reply,) = complete(engine, request(some_ids(4), stop_token_ids=[8]))
    assert reply.output_ids == [7, 8]
    assert reply.finish_reason == {"type": "stop", "matched": 8}


def test_a_reply_ends_at_its_own_limit_or_at_the_engines(engine: Engine) -> None:
    own, full, last = complete(
        engine,
        request(some_ids(10), max_new_tokens=5),
        request(some_ids(121), max_new_tokens=50),  # max_length is 128
        request(some_ids(127), max_new_tokens=50),
    )
    assert own.finish_reason == {"type": "length", "length": 5}
    assert full.finish_reason == {"type": "length", "length": 7}
    assert last.finish_reason == {"type": "length", "length": 1}


def test_a_request_for_no_token_gets_none(engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_tokens(monkeypatch, [tokenizer.eos_token_id]):
        (reply,) = complete(engine, request(some_ids(4), max_new_tokens=0, ignore_eos=False))
    assert (reply.output_ids, reply.log_probs) == ([], [])
    assert reply.finish_reason == {"type": "length", "length": 0}


# --- abort, weights, trouble --------------------------------------------------------------------------------------


def test_an_aborted_request_keeps_its_tokens_and_the_others_go_on(
    engine: Engine, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(engine, monkeypatch)
    prompts = {name: some_ids(6, seed=ord(name)) for name in "abcdef"}  # e and f wait: there are 4 slots
    with engine._changed:
        futures = {name: engine.submit(request(ids, name, temperature=0.0)) for name, ids in prompts.items()}
    steps.allow(2)  # the prompts, and one more token each
    steps.await_arrival(3)
    engine.abort("b")
    engine.abort("f")
    steps.allow()
    replies = {name: future.result(WAIT_S) for name, future in futures.items()}
    plain = {name: plain_greedy(model, prompts[name], 8) for name in prompts}
    assert {name for name in prompts if replies[name].finish_reason == {"type": "length", "length": 8}} == set("acde")
    assert all(replies[name].output_ids == plain[name] for name in "acde")
    for name, tokens in (("b", 2), ("f", 0)):
        assert kind_of_end(replies[name]) == "abort"
        assert replies[name].output_ids == plain[name][:tokens]
        assert len(replies[name].log_probs) == tokens


def test_abort_without_a_name_ends_running_and_waiting_requests(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(engine, monkeypatch)
    with engine._changed:
        futures = [engine.submit(request(some_ids(6, seed=number))) for number in range(6)]
    steps.await_arrival()
    engine.abort()
    steps.allow()
    assert [kind_of_end(future.result(WAIT_S)) for future in futures] == ["abort"] * 6
    assert complete(engine, request(some_ids(6)))[0].finish_reason == {"type": "length", "length": 8}


def test_a_future_of_the_engine_cannot_be_cancelled_under_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(engine, monkeypatch)
    future = engine.submit(request(some_ids(6)))
    assert not future.cancel()
    steps.allow()
    assert future.result(WAIT_S).finish_reason == {"type": "length", "length": 8}


def test_new_weights_change_the_replies_and_the_cache_is_forgotten(engine: Engine, tokenizer: Any) -> None:
    prompt = some_ids(20)
    before = complete(engine, request(prompt, temperature=0.0))[0]
    other = tiny_model(tokenizer, seed=1)
    engine.load_weights(other, "step 1")
    after = complete(engine, request(prompt, temperature=0.0))[0]
    assert (before.weight_version, after.weight_version) == ("0", "step 1")
    assert before.output_ids != after.output_ids == plain_greedy(other, prompt, 8)
    assert after.log_probs == pytest.approx(plain_log_probs(other, prompt + after.output_ids, 20), abs=1e-4)
    assert after.cached_tokens == 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_engine_does_not_follow_the_trainer_before_it_is_given_the_weights(tokenizer: Any, tied: bool) -> None:
    model = tiny_model(tokenizer, tied=tied)
    with Engine(model, tokenizer, dtype=torch.float32, slots=2, max_length=64) as engine:
        before = complete(engine, request(some_ids(9), temperature=0.0))[0].output_ids
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        assert complete(engine, request(some_ids(9), temperature=0.0))[0].output_ids == before
        engine.load_weights(model, "1")
        assert complete(engine, request(some_ids(9), temperature=0.0))[0].output_ids == plain_greedy(
            model, some_ids(9), 8
        )


def test_a_busy_engine_refuses_new_weights(engine: Engine, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(engine, monkeypatch)
    with engine._changed:
        future = engine.submit(request(some_ids(6)))
        with pytest.raises(RuntimeError, match="busy engine"):  # it waits
            engine.load_weights(model, "1")
    steps.await_arrival()
    with pytest.raises(RuntimeError, match="busy engine"):  # it runs
        engine.load_weights(model, "1")
    steps.allow()
    assert future.result(WAIT_S).weight_version == engine.weight_version == "0"


def test_a_failing_pass_is_reported_to_all_its_callers_and_the_engine_keeps_running(
    engine: Engine, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = some_ids(20)
    complete(engine, request(prompt))
    with monkeypatch.context() as patch:
        patch.setattr(engine._model.model, "forward", lambda *_, **__: torch.zeros(2) + torch.zeros(3))
        with engine._changed:
            futures = [engine.submit(request(some_ids(6, seed=number))) for number in range(3)]
        for future in futures:
            assert "size of tensor" in str(future.exception(WAIT_S))
    assert "engine step failed" in caplog.text and "Traceback" in caplog.text
    (reply,) = complete(engine, request(prompt, temperature=0.0))
    assert reply.output_ids == plain_greedy(model, prompt, 8)
    assert reply.cached_tokens == 0  # nobody knows what the failed pass wrote


def test_closing_ends_what_runs_and_waits(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, tokenizer, dtype=torch.float32, slots=2, max_length=64)
    steps = Steps(engine, monkeypatch)
    with engine._changed:
        futures = [engine.submit(request(some_ids(6, seed=number))) for number in range(3)]
    steps.await_arrival()
    closing = threading.Thread(target=engine.close)
    closing.start()
    steps.allow()
    assert [kind_of_end(future.result(WAIT_S)) for future in futures] == ["abort"] * 3
    closing.join(WAIT_S)
    assert not engine._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(request(some_ids(6)))
    engine.close()  # a second time does nothing


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], "at least one token"),
        ([5] * 128, "128 input tokens do not fit: the limit is 127"),
        ([5, -1], "outside the model's vocabulary"),
        ([5, 343], "outside the model's vocabulary"),
    ],
)
def test_a_request_that_can_never_run_is_refused(engine: Engine, ids: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        engine.submit(request(ids))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": 0.1},
        {"max_new_tokens": -1},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": 1e-30},
        {"temperature": "hot"},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"top_k": 1.5},
        {"stop": 5},
        {"stop": ""},
        {"stop": ["</search>", 5]},
        {"stop_token_ids": 5},
        {"stop_token_ids": ["5"]},
        {"ignore_eos": 1},
    ],
)
def test_sampling_parameters_that_cannot_be_followed_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"sampling_params.*{next(iter(wrong))}"):
        SamplingParams.from_json(wrong)


def test_parameters_that_are_none_take_their_defaults_and_integers_do_as_floats() -> None:
    given = {"temperature": 1, "top_p": None, "stop": None, "stop_token_ids": None, "max_new_tokens": None}
    assert SamplingParams.from_json(given) == SamplingParams()
    assert SamplingParams.from_json({"stop": "a", "stop_token_ids": [3]}) == SamplingParams(
        stop=("a",), stop_token_ids=(3,)
    )


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"max_length": 1}])
def test_an_engine_without_room_is_refused(model: Any, tokenizer: Any, wrong: dict) -> None:
    with pytest.raises(ValueError, match="at least 1 slot"):
        Engine(model, tokenizer, **wrong)
