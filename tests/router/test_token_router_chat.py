"""The router's chat completions: earlier turns keep their ids, and the answer and the record say the same."""

import json
from typing import Any

import pytest
from router_fakes import EOS, TOKENIZER, FakeWorker, Router, Turn, hermes_tokenizer, letters, log_probs_of, router, said

from search_rollout.protocols.chat_template import encode, next_turn_ids, render_prompt

HERMES = hermes_tokenizer()
USER = {"role": "user", "content": "Who?"}
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "search", "arguments": {"query":   "Kenya"}}\n</tool_call>'
PATH = "/v1/chat/completions"


async def chat(client: Router, messages: list[dict], trajectory: str = "t", **body: Any) -> dict:
    """The completion; the status must be 200."""
    status, answer = await client.post(PATH, {"messages": messages, "max_tokens": 500, **body}, trajectory)
    assert status == 200, answer
    return answer


async def by_messages(client: Router, messages: list[dict], **body: Any) -> dict:
    """The record; the status must be 200."""
    status, record = await client.post("/retrieve_from_messages_template", {"messages": messages, **body})
    assert status == 200, record
    return record


def prompt_ids(messages: list[dict], tools: tuple = (), **kwargs: Any) -> list[int]:
    return encode(HERMES, render_prompt(HERMES, messages, tools, **kwargs))


# --- ids


async def test_over_three_turns_every_sampled_id_goes_back_and_the_record_has_it_all() -> None:
    replies = [said(f"<think>one</think>\n{CALL}", end=True), said(CALL, end=True), said("Nairobi", end=True)]
    result = {"role": "tool", "content": "capital of Kenya"}
    messages, shared = [USER], {"tools": [TOOL]}
    async with FakeWorker(replies) as worker, router(worker, tokenizer=HERMES) as client:
        for turn in range(3):
            answer = await chat(client, messages, logprobs=True, **shared)
            messages = [*messages, answer["choices"][0]["message"]]
            if turn < 2:
                call_id = messages[-1]["tool_calls"][0]["id"]
                messages.append({**result, "tool_call_id": call_id})
        record = await by_messages(client, messages, **shared)
    appended = next_turn_ids(HERMES, [result], EOS)
    first = prompt_ids([USER], (TOOL,))
    second = first + replies[0].ids + appended
    third = second + replies[1].ids + appended
    assert [call["input_ids"] for call in worker.calls] == [first, second, third]
    turns = [len(turn.ids) for turn in replies]
    assert record["tokens"] == third + replies[2].ids
    assert record["loss_mask"] == (
        [0] * len(first) + [1] * turns[0] + [0] * len(appended) + [1] * turns[1] + [0] * len(appended) + [1] * turns[2]
    )
    assert record["rollout_logp"] == (
        [0.0] * len(first)
        + log_probs_of(0, turns[0])
        + [0.0] * len(appended)
        + log_probs_of(1, turns[1])
        + [0.0] * len(appended)
        + log_probs_of(2, turns[2])
    )
    assert record["response"].startswith("<think>one</think>\n<tool_call>")
    assert record["token_length"] == record["loss_mask_length"] == len(record["tokens"])


async def test_a_turn_that_did_not_end_itself_is_ended_by_the_template() -> None:
    async with FakeWorker([said("cut", finish="length"), said("x")]) as worker, router(worker) as client:
        answer = await chat(client, [USER])
        assert answer["choices"][0]["finish_reason"] == "length"
        await chat(client, [USER, answer["choices"][0]["message"], USER])
    assert worker.calls[1]["input_ids"] == (
        encode(TOKENIZER, render_prompt(TOKENIZER, [USER]))
        + letters("cut")
        + encode(TOKENIZER, "<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
    )


async def test_the_longest_known_prefix_is_used_whatever_follows_it() -> None:
    async with FakeWorker([said("a", end=True), said("b", end=True), said("c")]) as worker, router(worker) as client:
        messages = [USER, (await chat(client, [USER]))["choices"][0]["message"], USER]
        await chat(client, messages)
        foreign = {"role": "assistant", "content": "never sampled"}
        await chat(client, [*messages, foreign, USER])
    known = worker.calls[0]["input_ids"] + [*letters("a"), EOS]
    assert worker.calls[2]["input_ids"] == known + next_turn_ids(TOKENIZER, [USER, foreign, USER], EOS)


@pytest.mark.parametrize(
    "change",
    [
        {"trajectory": "other"},
        {"tools": [TOOL]},
        {"chat_template_kwargs": {"thinking": True}},
        {"messages": [{"role": "user", "content": "Who!"}]},
        {"messages": [{"role": "system", "content": "Who?"}]},
    ],
)
async def test_ids_of_another_conversation_are_not_used(change: dict) -> None:
    async with FakeWorker([said("a", end=True), said("b")]) as worker, router(worker, tokenizer=HERMES) as client:
        message = (await chat(client, [USER]))["choices"][0]["message"]
        messages = [*change.pop("messages", [USER]), message, USER]
        await chat(client, messages, **change)
        expected = prompt_ids(messages, tuple(change.get("tools", ())), **change.get("chat_template_kwargs", {}))
    assert worker.calls[1]["input_ids"] == expected


@pytest.mark.parametrize(
    "echo",
    [
        lambda message: message,
        lambda message: {**message, "content": ""},
        lambda message: {**message, "content": [{"type": "text", "text": ""}]},
        lambda message: {**message, "tool_calls": [{"function": {"name": "search", "arguments": {"query": "Kenya"}}}]},
        lambda message: {"role": "assistant", "tool_calls": message["tool_calls"]},
        lambda message: {**message, "refusal": None, "audio": None, "function_call": None},
    ],
)
async def test_an_assistant_message_is_known_again_however_a_client_writes_it(echo: Any) -> None:
    async with FakeWorker([said(CALL, end=True), said("b")]) as worker, router(worker, tokenizer=HERMES) as client:
        message = (await chat(client, [USER], tools=[TOOL]))["choices"][0]["message"]
        assert message["content"] is None
        await chat(client, [USER, echo(message), {"role": "tool", "content": "r"}], tools=[TOOL])
        assert (
            sum((await by_messages(client, [USER, echo(message)], tools=[TOOL]))["loss_mask"]) == len(letters(CALL)) + 1
        )
    assert worker.calls[1]["input_ids"][: len(prompt_ids([USER], (TOOL,))) + len(letters(CALL))] == (
        prompt_ids([USER], (TOOL,)) + letters(CALL)
    )


async def test_the_template_gets_its_arguments_in_every_turn() -> None:
    kwargs = {"chat_template_kwargs": {"thinking": True}}
    async with FakeWorker([said("a", end=True), said("b")]) as worker, router(worker, tokenizer=HERMES) as client:
        message = (await chat(client, [USER], **kwargs))["choices"][0]["message"]
        await chat(client, [USER, message, USER], **kwargs)
    assert all(TOKENIZER.decode(call["input_ids"]).endswith("assistant\n<think>") for call in worker.calls)


async def test_chat_and_text_share_what_is_stored() -> None:
    async with FakeWorker([said("ab", end=True), said("c")]) as worker, router(worker) as client:
        await chat(client, [USER])
        text = render_prompt(TOKENIZER, [USER]) + "ab<|im_end|>"
        assert (await client.by_text(text))["tokens"][-3:] == [*letters("ab"), EOS]
        await client.generate(text=text + "\n")
    assert worker.calls[1]["input_ids"][:-1] == worker.calls[0]["input_ids"] + [*letters("ab"), EOS]


# --- the worker's request


async def test_sampling_fields_get_sglangs_names() -> None:
    same = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "stop": ["x"],
        "stop_token_ids": [3],
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.1,
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
        "ignore_eos": False,
        "custom_params": {"a": 1},
        "regex": "a*",
    }
    openai = {"max_tokens": 9, "min_tokens": 2, "seed": 4}
    more = {"n": 1, "top_logprobs": 0, "tool_choice": "auto", "logprobs": True, "logprob_start_len": 1, "model": "m"}
    async with FakeWorker([said("a"), said("a"), said("a")]) as worker, router(worker) as client:
        await chat(client, [USER], **same, **openai, **more)
        await client.post(PATH, {"messages": [USER], "max_completion_tokens": 8, "stop": None, "logprobs": False})
        await client.post(PATH, {"messages": [USER]})
    ids = encode(TOKENIZER, render_prompt(TOKENIZER, [USER]))
    params = {**same, "max_new_tokens": 9, "min_new_tokens": 2, "sampling_seed": 4}
    assert worker.calls == [
        {"input_ids": ids, "sampling_params": params, "return_logprob": True, "logprob_start_len": 1},
        {"input_ids": ids, "sampling_params": {"max_new_tokens": 8}},
        {"input_ids": ids, "sampling_params": {"max_new_tokens": None}},  # SGLang's own default would be 128
    ]


@pytest.mark.parametrize(
    "field", [{"n": 2}, {"top_logprobs": 3}, {"tool_choice": "required"}, {"response_format": {"type": "json_object"}}]
)
async def test_a_field_that_cannot_be_passed_on_is_refused_by_name(field: dict) -> None:
    async with router() as client:
        assert f"`{next(iter(field))}`" in await client.error(PATH, {"messages": [USER], **field}, 400, "unsupported")


# --- the answer


async def test_the_answer_has_openais_form() -> None:
    turn = said("Nairobi", end=True)
    async with FakeWorker([turn]) as worker, router(worker) as client:
        answer = await chat(client, [USER], model="m", logprobs=True)
    assert answer.pop("id").startswith("chatcmpl-") and type(answer.pop("created")) is int
    count, texts = len(worker.calls[0]["input_ids"]), [*"Nairobi", "<|im_end|>"]
    assert answer == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Nairobi"},
                "finish_reason": "stop",
                "logprobs": {
                    "content": [
                        {"token": text, "logprob": log_prob, "bytes": None, "top_logprobs": []}
                        for text, log_prob in zip(texts, log_probs_of(0, 8), strict=True)
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": count, "completion_tokens": 8, "total_tokens": count + 8},
    }


async def test_meta_info_comes_on_request_with_the_ids() -> None:
    turn = said("ab", end=True)
    async with FakeWorker([turn]) as worker, router(worker) as client:
        choice = (await chat(client, [USER], return_meta_info=True))["choices"][0]
    assert choice["meta_info"] == {
        "id": "0",
        "finish_reason": {"type": "stop"},
        "prompt_tokens": len(worker.calls[0]["input_ids"]),
        "completion_tokens": 3,
        "cached_tokens": 0,
        "weight_version": "7",
        "output_ids": turn.ids,
    }
    assert "logprobs" not in choice


async def test_calls_are_taken_out_of_the_text() -> None:
    other = CALL.replace("Kenya", "Mali")
    async with FakeWorker([said(f"I search.\n{CALL}\n{other}", end=True)]) as worker:
        async with router(worker, tokenizer=HERMES) as client:
            choice = (await chat(client, [USER], tools=[TOOL]))["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "I search.")
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"query": "Kenya"}, {"query": "Mali"}]
    assert {call["function"]["name"] for call in calls} == {"search"} and {call["type"] for call in calls} == {
        "function"
    }
    assert calls[0]["id"].startswith("call_") and calls[0]["id"] != calls[1]["id"]


@pytest.mark.parametrize(
    "text, calls",
    [
        ("<tool_call>\nnot JSON\n</tool_call>", 0),
        (f"well <tool_call>[1]</tool_call> {CALL}", 1),
        (f"<think>I could {CALL}", 0),  # still thinking
        ("", 0),
        ("  two spaces\n", 0),
    ],
)
async def test_nothing_that_the_model_said_is_lost(text: str, calls: int) -> None:
    async with FakeWorker([said(text, end=True)]) as worker, router(worker, tokenizer=HERMES) as client:
        choice = (await chat(client, [USER], tools=[TOOL]))["choices"][0]
    assert choice["message"]["content"] == text
    assert len(choice["message"].get("tool_calls", ())) == calls
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")


async def test_a_call_inside_a_thought_opened_by_the_prompt_is_ignored() -> None:
    kwargs = {"tools": [TOOL], "chat_template_kwargs": {"thinking": True}}
    script = [said(CALL, end=True), said(f"hm</think>{CALL}", end=True)]
    async with FakeWorker(script) as worker, router(worker, tokenizer=HERMES) as client:
        thought, called = [(await chat(client, [USER], **kwargs))["choices"][0]["message"] for _ in script]
    assert thought == {"role": "assistant", "content": CALL}
    assert (called["content"], len(called["tool_calls"])) == ("hm</think>", 1)


async def test_without_tools_a_call_is_text() -> None:
    async with FakeWorker([said(CALL, end=True)]) as worker, router(worker, tokenizer=HERMES) as client:
        assert (await chat(client, [USER]))["choices"][0]["message"] == {"role": "assistant", "content": CALL}


async def test_a_call_cut_off_by_the_length_ends_the_turn_by_length() -> None:
    async with FakeWorker([said(CALL, finish="length")]) as worker, router(worker, tokenizer=HERMES) as client:
        assert (await chat(client, [USER], tools=[TOOL]))["choices"][0]["finish_reason"] == "length"


async def test_tools_need_a_model_that_knows_how_to_call_them() -> None:
    async with router(tool_format=None) as client:
        message = await client.error(PATH, {"messages": [USER], "tools": [TOOL]}, 400, "no_tool_format")
        assert "--tool-call-format" in message


# --- failure


async def test_an_aborted_reply_is_answered_but_not_stored() -> None:
    aborted = {"finish_reason": {"type": "abort", "message": "m"}}
    fewer = {"output_ids": letters("ab"), "meta_info": {**aborted, "output_token_logprobs": [[-0.1, 5, None]]}}
    script = [said("ab", finish="abort"), Turn(body=fewer), Turn(body={"text": "", "meta_info": aborted})]
    async with FakeWorker(script) as worker, router(worker) as client:
        for text in ("ab", "ab", ""):
            choice = (await chat(client, [USER], logprobs=True, return_meta_info=True))["choices"][0]
            assert (choice["finish_reason"], choice["message"]["content"]) == ("abort", text)
        assert choice["meta_info"]["output_ids"] == [] and choice["logprobs"] == {"content": []}
        assert client.store.tokens == 0


@pytest.mark.parametrize("body", [{}, [], b"no", {"text": "a", "meta_info": {"finish_reason": {"type": "stop"}}}])
async def test_a_reply_that_does_not_add_up_is_an_error_and_not_stored(body: Any) -> None:
    async with FakeWorker([Turn(body=body)]) as worker, router(worker) as client:
        await client.error(PATH, {"messages": [USER]}, 502, "bad_reply")
        assert client.store.tokens == 0


async def test_a_workers_error_is_passed_on_unchanged() -> None:
    turn = Turn(status=400, body={"error": {"message": "too long"}})
    async with FakeWorker([turn]) as worker, router(worker) as client:
        assert await client.post(PATH, {"messages": [USER]}) == (400, turn.body)


async def test_a_worker_that_dies_in_the_middle_is_replaced() -> None:
    async with FakeWorker(lambda _: Turn(drop=True)) as broken, FakeWorker([said("a")]) as sound:
        async with router(broken, sound) as client:
            assert (await chat(client, [USER]))["choices"][0]["message"]["content"] == "a"
    assert len(broken.calls) == 1


# --- records


async def test_a_record_may_go_on_to_where_the_model_would_speak_again() -> None:
    async with FakeWorker([said("ab", end=True)]) as worker, router(worker, tokenizer=HERMES) as client:
        messages = [USER, (await chat(client, [USER], logprobs=True))["choices"][0]["message"]]
        plain = await by_messages(client, messages)
        longer = await by_messages(client, messages, add_generation_prompt=True)
    opening = encode(TOKENIZER, "\n<|im_start|>assistant\n")
    assert longer["tokens"] == plain["tokens"] + opening
    assert longer["loss_mask"] == plain["loss_mask"] + [0] * len(opening)
    assert longer["rollout_logp"] == plain["rollout_logp"] + [0.0] * len(opening)
    assert longer["response"] == "ab<|im_end|>\n<|im_start|>assistant\n"
    assert longer["token_length"] == longer["loss_mask_length"] == len(longer["tokens"])


async def test_a_record_needs_the_same_conversation_and_trajectory() -> None:
    path = "/retrieve_from_messages_template"
    async with FakeWorker([said("ab", end=True)]) as worker, router(worker, tokenizer=HERMES) as client:
        messages = [USER, (await chat(client, [USER], tools=[TOOL]))["choices"][0]["message"]]
        body = {"messages": messages, "tools": [TOOL], "chat_template_kwargs": {}}
        assert (await client.post(path, body))[0] == 200
        await client.error(path, body, 404, "not_stored", trajectory="other")
        await client.error(path, {**body, "tools": None}, 404, "not_stored")
        await client.error(path, {**body, "chat_template_kwargs": {"a": 1}}, 404, "not_stored")
        await client.error(path, {**body, "messages": [USER]}, 404, "not_stored")
        await client.error(path, {**body, "messages": [*messages, USER]}, 404, "not_stored")
        for change in ({"content": "a"}, {"tool_calls": [{"function": {"name": "search", "arguments": "{}"}}]}):
            await client.error(path, {**body, "messages": [USER, {**messages[1], **change}]}, 404, "not_stored")


async def test_two_trajectories_that_say_the_same_in_other_ids_have_their_own_records() -> None:
    usual = Turn([*TOKENIZER.encode("capital"), EOS])
    async with FakeWorker([said("capital", end=True), usual]) as worker, router(worker) as client:
        messages = [USER, (await chat(client, [USER], "one"))["choices"][0]["message"]]
        await chat(client, [USER], "two")
        body = {"messages": messages}
        records = [await client.post("/retrieve_from_messages_template", body, name) for name in ("one", "two")]
    tails = [record["tokens"][len(worker.calls[0]["input_ids"]) :] for _, record in records]
    assert tails == [[*letters("capital"), EOS], usual.ids]
