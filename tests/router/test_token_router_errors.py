"""What the router says to requests that make no sense: the right status, OpenAI's error object, and nothing stored."""

import asyncio
import inspect
import io
import time

import pytest
from aiohttp import web
from router_fakes import FakeWorker, Turn, hermes_tokenizer, router, said
from transformers import PreTrainedTokenizerBase

from token_router.conversation import RESERVED

USER = {"role": "user", "content": "Who?"}
OWN_PATHS = ["/generate", "/v1/chat/completions", "/retrieve_from_text", "/retrieve_from_messages_template", "/workers"]
CHAT_PATHS = ["/v1/chat/completions", "/retrieve_from_messages_template"]


@pytest.mark.parametrize("path", OWN_PATHS)
@pytest.mark.parametrize(
    "raw, code",
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
async def test_a_body_that_is_not_a_json_object_is_refused(path: str, raw: bytes, code: str) -> None:
    async with router() as client:
        status, answer = await client.request("POST", path, data=raw)
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (400, code, "invalid_request_error")


@pytest.mark.parametrize("path", [*OWN_PATHS, "/anything"])
async def test_a_body_over_the_limit_is_refused_with_the_limit(path: str) -> None:
    async with FakeWorker([said("a")]) as worker, router(worker, max_body_bytes=1000) as client:
        message = await client.error(path, {"text": "a" * 2000}, 413, "body_too_large")
        assert "1000 bytes" in message and worker.calls == []


async def test_a_body_over_the_limit_without_a_length_header_is_refused() -> None:
    async def parts():
        for _ in range(20):
            yield b" " * 100

    async with router(max_body_bytes=1000) as client:
        assert (await client.request("POST", "/generate", data=parts()))[0] == 413


@pytest.mark.parametrize("path, body", [("/generate", {"text": "Q"}), ("/v1/chat/completions", {"messages": [USER]})])
async def test_streaming_is_refused(path: str, body: dict) -> None:
    async with FakeWorker([said("a")]) as worker, router(worker) as client:
        assert "stream" in await client.error(path, {**body, "stream": True}, 400, "no_streaming")
        assert worker.calls == []
        assert (await client.post(path, {**body, "stream": False}))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": None},
        {"text": "a", "input_ids": [1]},
        {"input_ids": ["1"]},
        {"input_ids": [1.5]},
        {"input_ids": [-1]},
        {"input_ids": [2**31]},
        {"input_ids": [1, None]},
        {"text": "a\ud800"},
    ],
)
async def test_an_invalid_prompt_is_refused_before_calling_a_worker(body: dict) -> None:
    async with FakeWorker([said("a")]) as worker, router(worker) as client:
        await client.error("/generate", body, 400, "bad_request")
        assert worker.calls == [] and client.store.tokens == 0


@pytest.mark.parametrize("body", [{"text": 7}, {"text": ""}, {"input_ids": []}, {"input_ids": 7}])
async def test_requests_that_only_the_worker_can_judge_are_passed_on(body: dict) -> None:
    refusal = Turn(status=422, body={"detail": "no"})
    async with FakeWorker([refusal]) as worker, router(worker) as client:
        assert await client.post("/generate", body) == (422, {"detail": "no"})


@pytest.mark.parametrize("body", [{}, {"text": None}, {"text": ["a"]}])
async def test_a_record_needs_a_text(body: dict) -> None:
    async with router() as client:
        await client.error("/retrieve_from_text", body, 400, "bad_request")


@pytest.mark.parametrize("path", CHAT_PATHS)
@pytest.mark.parametrize(
    "body, code",
    [
        ({}, "no_messages"),
        ({"messages": []}, "no_messages"),
        ({"messages": None}, "no_messages"),
        ({"messages": "hello"}, "no_messages"),
        ({"messages": ["hello"]}, "bad_message"),
        ({"messages": [{"content": "a"}]}, "unknown_role"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": 7}]}, "bad_message"),
        ({"messages": [{"role": "user", "content": {"text": "a"}}]}, "bad_message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]}, "bad_message"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "bad_message"),
        ({"messages": [{"role": "assistant", "tool_calls": "search"}]}, "bad_message"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "bad_message"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 7}}]}]}, "bad_message"),
        ({"messages": [USER], "tools": "search"}, "bad_request"),
        ({"messages": [USER], "tools": [7]}, "bad_request"),
        ({"messages": [USER], "chat_template_kwargs": [7]}, "bad_request"),
        ({"messages": [USER], "chat_template_kwargs": {"tokenize": True}}, "bad_request"),
    ],
)
async def test_messages_that_are_none_are_refused(path: str, body: dict, code: str) -> None:
    async with router() as client:
        await client.error(path, body, 400, code)


@pytest.mark.parametrize(
    "template, body",
    [
        ("{{ raise_exception('no system prompt') }}", {}),
        ("{{ messages[0].content.missing.more }}", {}),
        ("{% for", {}),
        (None, {}),
    ],
)
async def test_a_template_that_fails_is_the_callers_error(template: str | None, body: dict) -> None:
    tokenizer = hermes_tokenizer()
    tokenizer.chat_template = template
    async with FakeWorker() as worker, router(worker, tokenizer=tokenizer) as client:
        message = await client.error("/v1/chat/completions", {"messages": [USER], **body}, 400, "template_error")
        assert "template" in message and worker.calls == []


async def test_half_a_character_in_a_message_is_an_error_of_the_template() -> None:
    async with router() as client:
        body = {"messages": [{"role": "user", "content": "a\ud800"}]}
        await client.error("/v1/chat/completions", body, 400, "template_error")
        await client.error("/retrieve_from_messages_template", body, 404, "not_stored")


async def test_a_bug_of_the_router_is_logged_and_reported_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async with router() as client:
        client.store.whole_text = lambda *_: 1 // 0
        message = await client.error("/retrieve_from_text", {"text": "a"}, 500, "internal_error")
    assert "ZeroDivisionError" not in message
    assert "ZeroDivisionError" in caplog.text


async def test_a_request_line_that_names_another_host_goes_nowhere() -> None:
    async with FakeWorker() as worker, router(worker) as client:
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET http://example.invalid/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400")


# --- strangers


HANGS = "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("path", CHAT_PATHS)
@pytest.mark.parametrize("name", sorted(RESERVED))
async def test_a_caller_sets_variables_of_the_template_and_nothing_else(path: str, name: str) -> None:
    async with FakeWorker() as worker, router(worker, tokenizer=hermes_tokenizer()) as client:
        body = {"messages": [USER], "add_generation_prompt": True, "chat_template_kwargs": {name: HANGS}}
        assert name in await client.error(path, body, 400, "bad_request")
        assert worker.calls == []


def test_every_argument_of_transformers_is_reserved() -> None:
    ours = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert ours - {"self", "kwargs", "documents"} <= RESERVED  # documents are a template's


async def raw_status(url: str, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return line


@pytest.mark.parametrize("path", [*OWN_PATHS, "/anything"])
@pytest.mark.parametrize(
    "header", [b"Authorization: Bearer \xff", b"X-Search-R1-Trajectory: \xff", b"X-Other: \xed\xa0\x80"]
)
async def test_a_header_that_is_not_text_never_makes_the_router_fail(path: str, header: bytes) -> None:
    async with FakeWorker([said("a")], other=lambda *_: web.Response()) as worker, router(worker) as client:
        body = b'{"text": "Q", "messages": [{"role": "user", "content": "Q"}]}'
        head = b"POST %s HTTP/1.1\r\nHost: a\r\n%s\r\nContent-Length: %d\r\n\r\n" % (path.encode(), header, len(body))
        assert (await raw_status(client.url, head + body)).split()[1] in (b"200", b"400", b"404")


async def test_a_body_that_breaks_off_in_its_encoding_is_a_bad_request() -> None:
    async with router() as client:
        head = b"POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n"
        assert b" 400 " in await raw_status(client.url, head)


@pytest.mark.parametrize("path", CHAT_PATHS)
async def test_deeply_nested_values_never_make_the_router_fail(path: str) -> None:
    async with FakeWorker(lambda _: said("a")) as worker, router(worker) as client:
        for depth in range(300, 1000, 10):
            raw = '{"messages": [{"role": "user", "content": "Q"}], "tools": [{"a": %s}]}' % ("[" * depth + "]" * depth)
            status, _ = await client.request("POST", path, data=raw)
            assert status in (200, 400, 404)


async def test_a_body_of_many_small_values_does_not_hold_up_others() -> None:
    async with router(max_body_bytes=2**24) as client:
        began = time.monotonic()
        status, answer = await client.request("POST", "/generate", data=io.BytesIO(b"[" + b"[]," * 4_000_000 + b"[]]"))
        assert (status, answer["error"]["code"]) == (400, "too_complex") and time.monotonic() - began < 1.0
