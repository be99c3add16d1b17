"""SGLang's /generate, as far as a rollout relies on it: the same tests against the demo's engine and SGLang itself."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from demo_helpers import plain_log_probs
from engine_helpers import (
    CONTEXT,
    GOES_ON,
    PATTERN,
    EngineUnderTest,
    Figures,
    assert_same_but_for_ties,
    log_probs_of,
)

QUESTIONS = (
    "What is the capital of Kenya?",
    "Name a river that flows through Egypt.",
    "Who wrote Romeo and Juliet?",
    "What is the boiling point of water?",
    "Which planet is the largest?",
    "What colour is the sky on a clear day?",
)
PASSAGE = (
    "The Earth is the third planet from the Sun. It takes about 365 days to go around the Sun once, and 24 hours to "
    "turn around its own axis. Most of its surface is covered with water."
)
GREEDY = {"temperature": 0.0}
ENDLESS = {"max_new_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def pattern(tokenizer: Any) -> list[int]:
    """A prompt whose greedy continuation is GOES_ON, by far."""
    return tokenizer.encode(PATTERN)


@pytest.fixture(scope="module")
def goes_on(tokenizer: Any) -> list[int]:
    """The tokens of GOES_ON."""
    return tokenizer.encode(GOES_ON)


def chat(tokenizer: Any, question: str) -> list[int]:
    """A question's prompt ids, by the model's chat template."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


# --- ids and log-probabilities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probs_come_as_triples_whose_ids_are_the_output_ids(
    engine: EngineUnderTest, tokenizer: Any, temperature: float
) -> None:
    prompt = chat(tokenizer, QUESTIONS[0])
    reply = engine.generate({"temperature": temperature}, input_ids=prompt)
    ids, meta = reply["output_ids"], reply["meta_info"]
    assert ids and all(type(token) is int for token in ids)
    assert [len(triple) for triple in meta["output_token_logprobs"]] == [3] * len(ids)
    assert [triple[1] for triple in meta["output_token_logprobs"]] == ids
    assert all(type(value) is float and value <= 0 for value in log_probs_of(reply))
    assert meta["completion_tokens"] == len(ids)
    assert meta["prompt_tokens"] == len(prompt)


def test_without_return_logprob_the_ids_still_come(engine: EngineUnderTest, pattern: list[int]) -> None:
    reply = engine.generate({**GREEDY, "max_new_tokens": 3}, input_ids=pattern, return_logprob=False)
    assert len(reply["output_ids"]) == 3
    assert not reply["meta_info"].get("output_token_logprobs")


def test_the_weight_version_is_a_string_if_there_is_one(engine: EngineUnderTest, pattern: list[int]) -> None:
    meta = engine.generate({"max_new_tokens": 1}, input_ids=pattern)["meta_info"]
    assert isinstance(meta.get("weight_version", ""), str)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sampled_log_probs_are_those_of_a_plain_forward_pass(
    engine: EngineUnderTest, model: Any, tokenizer: Any, figures: Figures, temperature: float
) -> None:
    found: list[float] = []
    expected: list[float] = []
    for question in QUESTIONS[:4]:
        prompt = chat(tokenizer, question)
        reply = engine.generate({"temperature": temperature, "max_new_tokens": 32}, input_ids=prompt)
        found += log_probs_of(reply)
        # Greedy ones are told at temperature 1.
        expected += plain_log_probs(model, prompt + reply["output_ids"], len(prompt), temperature or 1.0)
    figures.agree(engine, f"sampled at temperature {temperature}", found, expected)


def test_log_probs_are_reported_before_top_p_and_top_k(
    engine: EngineUnderTest, model: Any, tokenizer: Any, figures: Figures
) -> None:
    prompt = chat(tokenizer, QUESTIONS[1])
    reply = engine.generate({"top_p": 0.5, "top_k": 4}, input_ids=prompt)
    expected = plain_log_probs(model, prompt + reply["output_ids"], len(prompt))
    figures.agree(engine, "sampled with top_p .5 and top_k 4", log_probs_of(reply), expected)


@pytest.mark.parametrize("start", [0, 5, -1, None])
def test_prompt_log_probs_begin_at_logprob_start_len_with_a_null(
    engine: EngineUnderTest, model: Any, tokenizer: Any, figures: Figures, start: int | None
) -> None:
    prompt = tokenizer.encode(PASSAGE)
    start = len(prompt) if start is None else start % len(prompt)
    # The engine has most of the prompt's keys already: it has to compute them again where they are asked about.
    engine.generate({"max_new_tokens": 1}, input_ids=prompt)
    reply = engine.generate({"max_new_tokens": 2, "temperature": 0.5}, input_ids=prompt, logprob_start_len=start)
    triples = reply["meta_info"]["input_token_logprobs"]
    assert [triple[1] for triple in triples] == prompt[start:]
    assert [triple[0] for triple in triples[:1]] == [None] * len(triples[:1])
    # At temperature 1 although tokens are sampled at .5; what is sampled is told at .5 in the same reply.
    if len(triples) > 1:
        expected = plain_log_probs(model, prompt, start + 1)
        figures.agree(engine, f"of the prompt from {start} on", [triple[0] for triple in triples[1:]], expected)
    expected = plain_log_probs(model, prompt + reply["output_ids"], len(prompt), 0.5)
    assert log_probs_of(reply) == pytest.approx(expected, abs=0.5)


def test_a_logprob_start_len_after_the_prompt_is_refused(engine: EngineUnderTest, pattern: list[int]) -> None:
    body = {"input_ids": pattern, "return_logprob": True, "logprob_start_len": len(pattern) + 1}
    assert engine.post("/generate", body).status_code == 400


# --- how a reply ends ---------------------------------------------------------------------------------------------


def test_a_stop_string_ends_a_reply_and_the_ids_keep_what_overshoots_it(
    engine: EngineUnderTest, tokenizer: Any, pattern: list[int], goes_on: list[int]
) -> None:
    stop = tokenizer.decode(goes_on[1:4])[:-2]  # within the last of three tokens
    reply = engine.generate({**GREEDY, "stop": ["never said", stop]}, input_ids=pattern)
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert reply["output_ids"] == goes_on[:4]
    assert len(log_probs_of(reply)) == 4
    assert tokenizer.decode(goes_on[:4]).startswith(reply["text"])
    assert stop in reply["text"]  # no_stop_trim; whether the text holds the overshoot depends on the engine's version


def test_without_no_stop_trim_the_text_is_cut_and_the_ids_are_not(
    engine: EngineUnderTest, tokenizer: Any, pattern: list[int], goes_on: list[int]
) -> None:
    stop = tokenizer.decode(goes_on[1:4])[:-2]
    reply = engine.generate({**GREEDY, "stop": stop, "no_stop_trim": False}, input_ids=pattern)
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert reply["output_ids"] == goes_on[:4]
    assert reply["text"] == tokenizer.decode(goes_on[:1])


@pytest.mark.parametrize("no_stop_trim", [True, False])
def test_a_stop_token_is_the_last_of_the_ids_and_matched_is_its_id(
    engine: EngineUnderTest, tokenizer: Any, pattern: list[int], goes_on: list[int], no_stop_trim: bool
) -> None:
    params = {**GREEDY, "stop_token_ids": [goes_on[3]], "no_stop_trim": no_stop_trim}
    reply = engine.generate(params, input_ids=pattern)
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": goes_on[3]}
    assert reply["output_ids"] == goes_on[:4]
    assert len(log_probs_of(reply)) == 4
    assert reply["text"] == tokenizer.decode(goes_on[: 4 if no_stop_trim else 3])


def test_the_end_of_a_turn_is_a_stop_token_of_the_model(engine: EngineUnderTest, tokenizer: Any) -> None:
    prompt = chat(tokenizer, "What is the capital of France?")
    reply = engine.generate({**GREEDY, "max_new_tokens": 200, "stop": ["</search>"]}, input_ids=prompt)
    reason = reply["meta_info"]["finish_reason"]
    assert reason == {"type": "stop", "matched": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert reply["output_ids"][-1] == reason["matched"]
    assert reply["text"] == tokenizer.decode(reply["output_ids"])  # skip_special_tokens is false


def test_a_reply_of_max_new_tokens_ends_by_length(
    engine: EngineUnderTest, pattern: list[int], goes_on: list[int]
) -> None:
    reply = engine.generate({**GREEDY, "max_new_tokens": 5}, input_ids=pattern)
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 5}
    assert reply["output_ids"] == goes_on[:5]


def test_a_request_for_more_than_the_context_holds_is_refused_or_cut_short(engine: EngineUnderTest) -> None:
    """SGLang refuses it, the demo's engine stops where the context ends: a rollout must not ask for more."""
    body = {"input_ids": [5] * (CONTEXT - 4), "sampling_params": {"max_new_tokens": 9, "ignore_eos": True}}
    response = engine.post("/generate", body)
    if response.status_code == 200:
        assert response.json()["meta_info"]["finish_reason"]["type"] == "length"
        assert len(response.json()["output_ids"]) <= 4
    else:
        assert response.status_code == 400


def test_where_the_context_ends_a_reply_ends_by_length(engine: EngineUnderTest) -> None:
    """SGLang keeps a few tokens of the context for itself: prompts go up to 6 less, a reply up to 2 less."""
    room = 10
    reply = engine.generate({"max_new_tokens": room, "ignore_eos": True}, input_ids=[5] * (CONTEXT - room))
    assert reply["meta_info"]["finish_reason"]["type"] == "length"
    assert reply["meta_info"]["prompt_tokens"] == CONTEXT - room
    assert room - 2 <= len(reply["output_ids"]) <= room


# --- what is asked ------------------------------------------------------------------------------------------------


def test_temperature_0_gives_the_same_reply_twice(engine: EngineUnderTest, model: Any, tokenizer: Any) -> None:
    prompt = chat(tokenizer, QUESTIONS[3])
    first, second, third = (engine.generate(GREEDY, input_ids=prompt) for _ in range(3))
    # The first is computed from the whole prompt, the others from its last token, which rounds differently.
    assert second["output_ids"] == third["output_ids"]
    assert log_probs_of(second) == pytest.approx(log_probs_of(third), abs=1e-3)
    assert_same_but_for_ties(model, prompt, first["output_ids"], second["output_ids"])


def test_text_is_encoded_as_the_tokenizer_does_it(
    engine: EngineUnderTest, tokenizer: Any, pattern: list[int], goes_on: list[int]
) -> None:
    params = {**GREEDY, "max_new_tokens": 5}
    reply = engine.generate(params, text=PATTERN)
    assert reply["meta_info"]["prompt_tokens"] == len(pattern)
    assert reply["output_ids"] == goes_on[:5]
    prompt = chat(tokenizer, QUESTIONS[0])  # special tokens among it
    reply = engine.generate({"max_new_tokens": 1}, text=tokenizer.decode(prompt))
    assert reply["meta_info"]["prompt_tokens"] == len(prompt)


def test_greedy_replies_do_not_depend_on_concurrent_requests(
    engine: EngineUnderTest, model: Any, tokenizer: Any
) -> None:
    prompts = [chat(tokenizer, question) for question in QUESTIONS]

    def ask(prompt: Sequence[int]) -> list[int]:
        return engine.generate({**GREEDY, "max_new_tokens": 16}, input_ids=prompt)["output_ids"]

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(ask, prompts))
    for prompt, one, other in zip(prompts, alone, together, strict=True):
        assert_same_but_for_ties(model, prompt, one, other)


# --- aborts, refusals, health -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"rid": "to-be-aborted"}, {"abort_all": True}], ids=["rid", "abort_all"])
def test_an_aborted_request_is_answered_with_what_it_has(
    engine: EngineUnderTest, pattern: list[int], body: dict
) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(engine.generate, ENDLESS, input_ids=pattern, rid="to-be-aborted")
        for _ in range(100):  # one that comes before the request does nothing
            time.sleep(0.3)
            assert engine.post("/abort_request", body).status_code == 200
            if future.done():
                break
        reply = future.result()
    assert reply["meta_info"]["finish_reason"]["type"] == "abort"
    assert reply["meta_info"]["prompt_tokens"] == len(pattern)
    assert len(reply["output_ids"]) < ENDLESS["max_new_tokens"]
    triples = reply["meta_info"].get("output_token_logprobs")
    assert triples is None or [triple[1] for triple in triples] == reply["output_ids"]


def test_aborting_one_request_leaves_the_others_alone(engine: EngineUnderTest, pattern: list[int]) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(engine.generate, {"max_new_tokens": 12, "ignore_eos": True}, input_ids=pattern, rid="mine")
        while not future.done():
            assert engine.post("/abort_request", {"rid": "somebody-elses"}).status_code == 200
            time.sleep(0.2)
    assert len(future.result()["output_ids"]) == 12


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"input_ids": [5] * CONTEXT}, id="longer than the context"),
        pytest.param({"input_ids": []}, id="no ids"),
        pytest.param({"text": ""}, id="no text"),
        pytest.param({}, id="neither ids nor text"),
        pytest.param({"input_ids": ["a"]}, id="ids that are strings"),
        pytest.param({"input_ids": "5 6"}, id="ids that are a string"),
        pytest.param({"input_ids": [5], "sampling_params": {"temperature": -1.0}}, id="negative temperature"),
        pytest.param({"input_ids": [5], "sampling_params": {"top_p": 0.0}}, id="top_p of 0"),
        pytest.param({"input_ids": [5], "sampling_params": {"max_new_tokens": -1}}, id="negative max_new_tokens"),
        pytest.param([5], id="not an object"),
        pytest.param(b'{"input_ids": [5', id="not JSON"),
    ],
)
def test_a_bad_request_is_answered_with_a_4xx_and_the_engine_lives_on(engine: EngineUnderTest, body: Any) -> None:
    """Ids outside the vocabulary are not among these: they end SGLang's process on a CPU."""
    response = engine.post("/generate", body)
    assert 400 <= response.status_code < 500, response.text
    assert response.text
    assert len(engine.generate({"max_new_tokens": 1}, input_ids=[5])["output_ids"]) == 1
