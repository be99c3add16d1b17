"""The router's /generate and /retrieve_from_text: ids that a worker sampled go back to it, and out, unchanged."""

import asyncio

import pytest
from router_fakes import EOS, TOKENIZER, FakeWorker, Router, Turn, letters, log_probs_of, router, said, until

from token_router.token_trie import PIECE_TOKENS

PROMPT = "Who?"
OBSERVATION = "\n<information>Nairobi</information>\n"


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


async def test_over_three_turns_every_sampled_id_is_sent_back_unchanged() -> None:
    replies = [said("<think>capital"), said("<search>Kenya"), said("<answer>Nairobi", end=True)]
    async with FakeWorker(replies) as worker, router(worker) as client:
        text = PROMPT
        for _ in range(3):
            text += (await client.generate(text=text))["text"] + OBSERVATION
        record = await client.by_text(text.removesuffix(OBSERVATION))
    seen = encoded(OBSERVATION)
    turns = [turn.ids for turn in replies]
    assert all(turn != encoded(TOKENIZER.decode(turn)) for turn in turns)  # or the test would prove nothing
    expected = [encoded(PROMPT)]
    for turn in turns[:2]:
        expected.append(expected[-1] + turn + seen)
    assert [call["input_ids"] for call in worker.calls] == expected
    prompt = encoded(PROMPT)
    assert record == {
        "tokens": expected[-1] + turns[2],
        "response": "<think>capital" + OBSERVATION + "<search>Kenya" + OBSERVATION + "<answer>Nairobi<|im_end|>",
        "loss_mask": [0] * len(prompt)
        + [1] * len(turns[0])
        + [0] * len(seen)
        + [1] * len(turns[1])
        + [0] * len(seen)
        + [1] * len(turns[2]),
        "token_length": len(expected[-1]) + len(turns[2]),
        "loss_mask_length": len(expected[-1]) + len(turns[2]),
        "rollout_logp": [0.0] * len(prompt)
        + log_probs_of(0, len(turns[0]))
        + [0.0] * len(seen)
        + log_probs_of(1, len(turns[1]))
        + [0.0] * len(seen)
        + log_probs_of(2, len(turns[2])),
    }


async def test_the_worker_gets_what_the_caller_gave_and_the_caller_what_the_worker_gave() -> None:
    body = {"sampling_params": {"temperature": 0.5, "stop": ["a"]}, "rid": "r", "logprob_start_len": 3, "x": None}
    async with FakeWorker([said("a")]) as worker, router(worker) as client:
        status, reply = await client.post("/generate", {"text": PROMPT, **body})
    assert worker.calls == [{**body, "input_ids": encoded(PROMPT)}]
    assert status == 200
    assert reply == {
        "text": "a",
        "output_ids": letters("a"),
        "meta_info": {
            "id": "0",
            "finish_reason": {"type": "stop"},
            "prompt_tokens": len(encoded(PROMPT)),
            "completion_tokens": 1,
            "cached_tokens": 0,
            "weight_version": "7",
        },
    }


async def test_the_callers_headers_go_upstream() -> None:
    headers = {"X-SMG-Routing-Key": "k", "X-Other": "o", "X-Search-R1-Trajectory": "t"}
    async with FakeWorker([said("a")]) as worker, router(worker) as client:
        await client.request("POST", "/generate", json={"text": PROMPT}, headers=headers)
    assert headers.items() <= dict(worker.headers[0]).items()
    assert worker.headers[0]["Host"] == f"127.0.0.1:{worker.port}"


async def test_two_trajectories_that_say_the_same_in_other_ids_keep_their_own() -> None:
    usual = Turn(encoded("capital"))
    async with FakeWorker([said("capital"), usual, said("x"), said("x")]) as worker, router(worker) as client:
        for name in ("one", "two", "one", "two"):
            later = name in [call.get("rid") for call in worker.calls]
            await client.generate(name, text=PROMPT + ("capital" + OBSERVATION) * later, rid=name)
        records = [await client.by_text(PROMPT + "capital", name) for name in ("one", "two")]
        await client.error("/retrieve_from_text", {"text": PROMPT + "capital"}, 404, "not_stored", trajectory=None)
    prompt, seen = encoded(PROMPT), encoded(OBSERVATION)
    assert [call["input_ids"] for call in worker.calls[2:]] == [
        prompt + letters("capital") + seen,
        prompt + usual.ids + seen,
    ]
    assert [record["tokens"] for record in records] == [prompt + letters("capital"), prompt + usual.ids]


async def test_without_the_header_all_requests_share_one_namespace() -> None:
    async with FakeWorker([said("capital"), said("x")]) as worker, router(worker) as client:
        await client.generate(None, text=PROMPT)
        await client.generate(None, text=PROMPT + "capital!")
    assert worker.calls[1]["input_ids"] == encoded(PROMPT) + letters("capital") + encoded("!")


async def test_a_stop_string_that_was_cut_from_the_text_stays_in_the_ids() -> None:
    overshoot = Turn(letters("<search>Kenya</search>\n\n"), text="<search>Kenya")
    async with FakeWorker([overshoot, said("x")]) as worker, router(worker) as client:
        await client.generate(text=PROMPT)
        await client.generate(text=PROMPT + "<search>Kenya" + OBSERVATION)
        record = await client.by_text(PROMPT + "<search>Kenya")
    assert worker.calls[1]["input_ids"] == encoded(PROMPT) + overshoot.ids + encoded(OBSERVATION)
    assert record["response"] == "<search>Kenya</search>\n\n"


async def test_half_a_character_at_the_end_of_a_reply_does_not_matter() -> None:
    half = encoded("é")[:1]
    assert TOKENIZER.decode(half) == "\ufffd"
    async with FakeWorker([Turn(half), said("x")]) as worker, router(worker) as client:
        reply = await client.generate(text=PROMPT)
        await client.generate(text=PROMPT + reply["text"] + OBSERVATION)
    assert worker.calls[1]["input_ids"] == encoded(PROMPT) + half + encoded(OBSERVATION)


async def test_a_reply_without_text_and_an_empty_observation_are_no_obstacle() -> None:
    silent = Turn([EOS], text="")
    async with FakeWorker([silent, said("ab"), said("c")]) as worker, router(worker) as client:
        await client.generate(text=PROMPT)
        await client.generate(text=PROMPT)
        await client.generate(text=PROMPT + "ab")
        record = await client.by_text(PROMPT + "abc")
    assert worker.calls[1]["input_ids"] == [*encoded(PROMPT), EOS]
    assert worker.calls[2]["input_ids"] == record["tokens"][:-1] == [*encoded(PROMPT), EOS, *letters("ab")]
    assert record["loss_mask"] == [0] * len(encoded(PROMPT)) + [1, 1, 1, 1]


async def test_a_fresh_prompt_is_encoded_as_a_whole_although_it_begins_like_another() -> None:
    async with FakeWorker([said("x"), said("y")]) as worker, router(worker) as client:
        await client.generate(text="capi")
        await client.generate(text="capital of Kenya")
    assert worker.calls[1]["input_ids"] == encoded("capital of Kenya")
    assert encoded("capi") + encoded("tal of Kenya") != encoded("capital of Kenya")


async def test_a_retried_turn_is_a_separate_branch() -> None:
    async with FakeWorker([said("a"), said("b"), said("c"), said("d")]) as worker, router(worker) as client:
        for text in (PROMPT, PROMPT, PROMPT + "a!", PROMPT + "b!"):
            await client.generate(text=text)
        records = [await client.by_text(PROMPT + text) for text in ("a!c", "b!d")]
    prompt = encoded(PROMPT)
    assert [record["tokens"] for record in records] == [prompt + letters(text) for text in ("a!c", "b!d")]


async def test_the_same_words_in_other_ids_replace_those_before() -> None:
    async with FakeWorker([said("capital"), Turn(encoded("capital"))]) as worker, router(worker) as client:
        await client.generate(text=PROMPT)
        await client.generate(text=PROMPT)
        assert (await client.by_text(PROMPT + "capital"))["tokens"] == encoded(PROMPT + "capital")


async def test_ids_are_stored_too_and_a_later_turn_in_ids_keeps_the_mask_of_the_earlier() -> None:
    prompt, seen = letters(PROMPT), letters(OBSERVATION)  # not the ids that the tokenizer would give
    first, second = said("<search>Kenya"), said("<answer>Nairobi")
    async with FakeWorker([first, second]) as worker, router(worker) as client:
        await client.generate(input_ids=prompt)
        await client.generate(input_ids=prompt + first.ids + seen)
        record = await client.by_text(PROMPT + "<search>Kenya" + OBSERVATION + "<answer>Nairobi")
    assert [call["input_ids"] for call in worker.calls] == [prompt, prompt + first.ids + seen]
    assert record["tokens"] == prompt + first.ids + seen + second.ids
    assert record["loss_mask"] == ([0] * len(prompt) + [1] * len(first.ids) + [0] * len(seen) + [1] * len(second.ids))
    assert record["rollout_logp"] == (
        [0.0] * len(prompt) + log_probs_of(0, len(first.ids)) + [0.0] * len(seen) + log_probs_of(1, len(second.ids))
    )


async def test_turns_in_ids_and_turns_in_text_continue_each_other() -> None:
    prompt, replies = letters(PROMPT), [said("ab"), said("cd"), said("ef")]
    async with FakeWorker(replies) as worker, router(worker) as client:
        await client.generate(input_ids=prompt)
        await client.generate(text=PROMPT + "ab" + OBSERVATION)
        sent = worker.calls[1]["input_ids"]
        await client.generate(input_ids=sent + replies[1].ids + letters("!"))
        record = await client.by_text(PROMPT + "ab" + OBSERVATION + "cd!ef")
    assert sent == prompt + letters("ab") + encoded(OBSERVATION)
    assert record["tokens"] == sent + letters("cd!ef")
    assert sum(record["loss_mask"]) == 6


async def test_a_reply_that_has_no_text_is_found_under_what_its_ids_decode_to() -> None:
    body = {"output_ids": letters("ab"), "meta_info": {"finish_reason": {"type": "stop"}}}
    async with FakeWorker([Turn(body=body)]) as worker, router(worker) as client:
        await client.post("/generate", {"input_ids": letters(PROMPT)})
        assert (await client.by_text(PROMPT + "ab"))["tokens"] == letters(PROMPT + "ab")


async def test_ids_may_come_from_the_triples_alone() -> None:
    meta = {"finish_reason": {"type": "length"}, "output_token_logprobs": [[-0.5, 11, "x"], [-0.25, 12, None]]}
    async with FakeWorker([Turn(body={"text": "ab", "meta_info": meta})]) as worker, router(worker) as client:
        await client.generate(text=PROMPT)
        record = await client.by_text(PROMPT + "ab")
    assert (record["tokens"][-2:], record["rollout_logp"][-2:]) == ([11, 12], [-0.5, -0.25])


async def test_replies_without_log_probabilities_leave_the_record_without_them() -> None:
    async with FakeWorker([said("ab"), said("cd")]) as worker, router(worker) as client:
        await client.generate(text=PROMPT)
        await client.generate(text=PROMPT + "ab!", return_logprob=False)
        assert (await client.by_text(PROMPT + "ab"))["rollout_logp"] is not None
        record = await client.by_text(PROMPT + "ab!cd")
    assert record["rollout_logp"] is None
    assert sum(record["loss_mask"]) == 4


async def test_an_aborted_reply_is_passed_on_but_not_stored() -> None:
    async with FakeWorker([said("ab", finish="abort"), said("x")]) as worker, router(worker) as client:
        assert (await client.generate(text=PROMPT))["meta_info"]["finish_reason"] == {"type": "abort"}
        await client.error("/retrieve_from_text", {"text": PROMPT + "ab"}, 404, "not_stored")
        await client.error("/retrieve_from_text", {"text": PROMPT}, 404, "not_stored")
        assert client.store.tokens == 0
        await client.generate(text=PROMPT)
    assert worker.calls[0] == worker.calls[1]


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_a_workers_error_is_passed_on_unchanged(status: int) -> None:
    turn = Turn(status=status, body={"error": {"message": "no", "code": "its own"}})
    async with FakeWorker([turn]) as worker, router(worker) as client:
        assert await client.post("/generate", {"text": PROMPT}) == (status, turn.body)
        assert client.store.tokens == 0 and len(worker.calls) == 1
        assert (await client.request("GET", "/health"))[0] == 200


async def test_nothing_is_stored_of_an_error_that_looks_like_a_reply() -> None:
    async with FakeWorker([Turn(status=500, body=GOOD)]) as worker, router(worker) as client:
        assert await client.post("/generate", {"text": PROMPT}) == (500, GOOD)
        assert client.store.tokens == 0


GOOD = {"text": "ab", "output_ids": [5, 6], "meta_info": {"finish_reason": {"type": "stop"}}}


def with_meta(**meta: object) -> dict:
    return {**GOOD, "meta_info": {**GOOD["meta_info"], **meta}}


@pytest.mark.parametrize(
    "reply",
    [
        with_meta(output_token_logprobs=[[-0.1, 5, None]]),  # shorter than the ids
        with_meta(output_token_logprobs=[[-0.1, 5, None], [-0.2, 7, None]]),  # of another id
        with_meta(output_token_logprobs=[[-0.1, 5, None], [float("nan"), 6, None]]),
        with_meta(output_token_logprobs=[[-0.1, 5, None], [None, 6, None]]),
        with_meta(output_token_logprobs=[[-0.1, 5], [-0.2, 6]]),  # pairs
        with_meta(finish_reason={"type": "bored"}),
        with_meta(finish_reason=None),
        {**GOOD, "output_ids": [5, "6"]},
        {**GOOD, "output_ids": [5, -6]},
        {**GOOD, "output_ids": [], "text": ""},
        {**GOOD, "output_ids": None},
        {**GOOD, "text": ["ab"]},
        [GOOD, GOOD],  # n = 2
        {},
        b"not JSON",
    ],
)
async def test_a_reply_that_does_not_add_up_is_passed_on_and_nothing_of_it_stored(reply: object) -> None:
    async with FakeWorker([Turn(body=reply)]) as worker, router(worker) as client:
        async with client.session.post(client.url + "/generate", json={"text": PROMPT}) as answer:
            assert answer.status == 200
            got = await answer.read()
        assert got == reply if isinstance(reply, bytes) else got.startswith((b"{", b"["))
        await client.error("/retrieve_from_text", {"text": PROMPT}, 404, "not_stored", trajectory=None)
        assert (client.store.tokens, client.store.trajectories) == (0, 0)


@pytest.mark.parametrize("batch", [{"text": ["a", "b"]}, {"input_ids": [[1, 2], [3]]}, {"input_embeds": [[0.1]]}])
async def test_a_batch_goes_to_the_worker_untouched_and_is_not_stored(batch: dict) -> None:
    async with FakeWorker([Turn(body=[GOOD, GOOD])]) as worker, router(worker) as client:
        assert await client.post("/generate", {**batch, "x": 1}) == (200, [GOOD, GOOD])
        assert worker.calls == [{**batch, "x": 1}] and client.store.tokens == 0


async def test_an_empty_text_has_an_empty_record() -> None:
    async with router() as client:
        assert await client.by_text("") == {
            "tokens": [],
            "response": "",
            "loss_mask": [],
            "token_length": 0,
            "loss_mask_length": 0,
            "rollout_logp": [],
        }


@pytest.mark.parametrize("text", [PROMPT + "a", PROMPT + "ab!", "ab", PROMPT + "ab!c", PROMPT + "ab!cd "])
async def test_a_text_that_is_not_stored_whole_is_not_found(text: str) -> None:
    async with FakeWorker([said("ab"), said("cd")]) as worker, router(worker) as client:
        await client.generate(text=PROMPT)
        await client.generate(text=PROMPT + "ab! ")
        await client.error("/retrieve_from_text", {"text": text}, 404, "not_stored")
        assert (await client.by_text(PROMPT + "ab! cd"))["response"] == "ab! cd"


async def test_a_prompt_dropped_while_a_worker_samples_is_stored_again_with_its_reply() -> None:
    go_on = asyncio.Event()
    script = [said("ab"), said("cd", wait=go_on), said("x" * 20)]
    async with FakeWorker(script) as worker, router(worker, max_tokens=25 + 4 * PIECE_TOKENS) as client:
        await client.generate(text=PROMPT)
        slow = asyncio.create_task(client.generate(text=PROMPT + "ab!"))
        await until(lambda: len(worker.calls) == 2)
        await client.generate("other", text=PROMPT)
        await client.error("/retrieve_from_text", {"text": PROMPT + "ab"}, 404, "not_stored")
        go_on.set()
        await slow
        record = await client.by_text(PROMPT + "ab!cd")
        assert client.store.tokens <= 25 + PIECE_TOKENS
    assert record["loss_mask"] == [0] * len(encoded(PROMPT)) + [1, 1, 0, 1, 1]
    assert record["rollout_logp"][-5:] == [*log_probs_of(0, 2), 0.0, *log_probs_of(1, 2)]


async def test_a_hundred_trajectories_at_once_do_not_mix() -> None:
    def script(body: dict) -> Turn:
        return said(body["rid"])

    async def live(client: Router, name: str) -> list[int]:
        text = f"{PROMPT} I am {name}."
        for _ in range(4):
            reply = await client.generate(name, text=text, rid=name)
            assert reply["text"] == name
            text += name + OBSERVATION
            await asyncio.sleep(0)
        return (await client.by_text(text.removesuffix(OBSERVATION), name))["tokens"]

    async with FakeWorker(script) as worker, router(worker) as client:
        names = [f"trajectory {number}" for number in range(100)]
        for name, tokens in zip(names, await asyncio.gather(*(live(client, name) for name in names)), strict=True):
            turn = letters(name)
            assert tokens == encoded(f"{PROMPT} I am {name}.") + 3 * (turn + encoded(OBSERVATION)) + turn


async def test_a_caller_that_hangs_up_ends_the_generation_and_leaves_nothing_behind() -> None:
    async with FakeWorker([said("ab", wait=asyncio.Event())]) as worker, router(worker) as client:
        waiting = asyncio.create_task(client.generate(text=PROMPT))
        await until(lambda: worker.calls)
        waiting.cancel()
        await until(lambda: worker.hung_up)
        assert client.store.tokens == 0
        assert [one.load for one in client.workers] == [0]
