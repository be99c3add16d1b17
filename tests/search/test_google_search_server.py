"""The server of web search: the wire of the local retriever, its client in front of it, and the command line."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from search_helpers import google_search
from web_fakes import KEY, FakeGoogle, json_error

import google_search_server
from google_search_server import create_app
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.passage import Passage
from search_rollout.search.searcher import Searcher

REPOSITORY = Path(__file__).parents[2]


@asynccontextmanager
async def server(google: FakeGoogle, **settings: Any) -> AsyncIterator[str]:
    async with google:
        search = google_search(google.url)
        searcher = Searcher([search], concurrency=8, timeout_s=5.0, retries=0)
        async with TestServer(create_app(searcher, topk=3, **settings)) as started:
            yield f"http://127.0.0.1:{started.port}"


async def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/retrieve", data=data, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def test_the_answer_has_the_wire_of_the_local_retriever():
    async with server(FakeGoogle()) as url:
        status, answer = await post(url, {"queries": ["a", "b"], "topk": 1})
        assert (status, answer) == (
            200,
            {"result": 2 * [[{"id": "1", "contents": '"Kenya / Capital"\nThe capital of Kenya is Nairobi.'}]]},
        )
        _, answer = await post(url, {"queries": ["a"], "return_scores": True})
        scored = answer["result"][0]
        assert [item["score"] for item in scored] == [1, 1 / 2, 1 / 3]
        assert set(scored[0]["document"]) == {"id", "contents"}


async def test_a_rollout_reads_the_same_passages_through_the_server_as_directly():
    async with FakeGoogle() as google:
        direct = google_search(google.url)
        expected = await direct.find("x")
        await direct.close()
    async with server(FakeGoogle()) as url:
        client = LocalRetriever(url, topk=3, timeout_s=5.0)
        found = await client.find("x")
        await client.close()
    assert found == expected and found[0] == Passage("Kenya / Capital", "The capital of Kenya is Nairobi.")


async def test_the_status_of_a_failure_says_whether_to_ask_again():
    async def some(_: int, request: Any) -> Any:
        return json_error(500, "oh") if (await request.json())["q"] == "bad" else None

    async with server(FakeGoogle(trouble=some)) as url:
        assert (await post(url, {"queries": ["good", "bad"]}))[0] == 500  # ask for each alone
        status, answer = await post(url, {"queries": ["bad"]})
        assert status == 502 and "answered 500" in answer["detail"]
    async with server(FakeGoogle(key="another")) as url:
        status, answer = await post(url, {"queries": ["x"]})
        assert status == 502 and "GOOGLE_API_KEY" in answer["detail"] and KEY not in answer["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "object"),
        ({}, "queries"),
        ({"queries": []}, "queries"),
        ({"queries": "x"}, "queries"),
        ({"queries": [" "]}, "blank"),
        ({"queries": [5]}, "string"),
        ({"queries": ["x" * 10_001]}, "10000"),
        ({"queries": ["x"] * 513}, "512"),
        ({"queries": ["x"], "topk": 0}, "from 1 to 3"),
        ({"queries": ["x"], "topk": 4}, "larger --topk"),
        ({"queries": ["x"], "topk": True}, "topk"),
        ({"queries": ["x"], "return_scores": 1}, "return_scores"),
    ],
)
async def test_a_malformed_request_is_refused_with_a_sentence(body, words):
    google = FakeGoogle()
    async with server(google) as url:
        status, answer = await post(url, body)
    assert status == 422 and words in answer["detail"] and google.requests == []


async def test_with_a_key_only_clients_that_send_it_are_served():
    google = FakeGoogle()
    async with server(google, api_key="ours") as url, aiohttp.ClientSession(url) as session:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "öurs"}, {"Authorization": "ours"}):
            assert (await post(url, {"queries": ["x"]}, **headers))[0] == 401
            assert (await session.get("/usage", headers=headers)).status == 401
            assert (await session.get("/health", headers=headers)).status == 200
        assert google.requests == []
        for sent in ("Bearer ours", "bearer ours", "BEARER  ours"):
            assert (await post(url, {"queries": ["x"]}, Authorization=sent))[0] == 200
            assert (await session.get("/usage", headers={"Authorization": sent})).status == 200


async def exchange(url: str, request: bytes) -> bytes:
    """The answer to bytes as they are; the connection is closed after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(request)
    answer = await asyncio.wait_for(reader.readline(), 5.0)
    writer.close()
    return answer


async def test_bytes_that_are_not_text_are_rejected_as_a_key():
    async with server(FakeGoogle(), api_key="ours") as url:
        for sent in (b"Bearer \xff", b"\xff ours", b"Bearer ours\xff"):
            head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: 2\r\n\r\n{}" % sent
            assert b" 401 " in await exchange(url, head)


async def test_a_body_that_is_not_what_its_encoding_says_is_a_bad_request():
    async with server(FakeGoogle()) as url:
        for encoding in (b"gzip", b"deflate"):
            head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Encoding: %s\r\nContent-Length: 4\r\n\r\nabcd"
            assert b" 400 " in await exchange(url, head % encoding)


async def test_health_and_usage_are_served():
    async with server(FakeGoogle()) as url, aiohttp.ClientSession(url) as session:
        await post(url, {"queries": ["x", "x"]})
        async with session.get("/health") as answer:
            assert await answer.json() == {"status": "ok"}
        async with session.get("/usage") as answer:
            usage = await answer.json()
        assert (usage["search/queries"], usage["search/calls"]) == (2, 1)


# The command line.


def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert google_search_server.main(list(flags)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_without_a_key_it_says_what_to_set(capsys):
    assert "set GOOGLE_API_KEY" in error_of(capsys)


def test_a_port_in_use_is_reported_in_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "set another --port" in error_of(capsys, "--port", str(taken.getsockname()[1]))
    assert "--port" in error_of(capsys, "--host", "999.1.1.1")


@pytest.mark.parametrize("flags", [["--port", "x"], ["--port", "70000"], ["--topk", "0"], ["--key", "secret"]])
def test_a_wrong_flag_is_refused_and_no_flag_takes_the_key(flags, capsys):
    with pytest.raises(SystemExit) as exit:
        google_search_server.parse_args(flags)
    assert exit.value.code == 2 and "usage" in capsys.readouterr().err


@asynccontextmanager
async def script(google: FakeGoogle, **environment: str) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    """The server as a process of its own, and its URL."""
    variables = {**os.environ, "GOOGLE_API_KEY": KEY, "SEARCH_R1_GOOGLE_ENDPOINT": google.url, **environment}
    command = [sys.executable, "google_search_server.py", "--port", "0"]
    with subprocess.Popen(  # noqa: ASYNC220
        command, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = await asyncio.to_thread(process.stdout.readline)
            yield ready.split(" at ")[1].strip().removesuffix("/retrieve"), process
        finally:
            process.kill()


async def stopped(process: subprocess.Popen[str]) -> str:
    """What a server that is sent SIGTERM writes to stderr before it exits with 0."""
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 0
    return errors


async def test_run_as_a_script_it_serves_with_the_cache_and_stops_on_sigterm(tmp_path):
    async with FakeGoogle() as google, script(google, SEARCH_CACHE=str(tmp_path / "cache")) as (url, process):
        for _ in range(2):
            assert (await post(url, {"queries": ["capital of Kenya"]}))[0] == 200
        assert await stopped(process) == "stopped\n"
    assert len(google.requests) == 1


async def test_half_a_request_does_not_keep_the_server_from_stopping():
    halves = [
        b"",
        b"POST /retr",
        b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Le",
        b'POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"queries"',
    ]
    async with FakeGoogle() as google, script(google) as (url, process):
        writers = []
        for half in halves * 5:
            _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(half)
            await writer.drain()
            writers.append(writer)
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await stopped(process)
        assert time.monotonic() - began < 6.0
        for writer in writers:
            writer.close()


async def test_nothing_more_is_searched_for_a_client_that_hangs_up():
    async def slow(*_: Any) -> float:
        return 0.5

    async with FakeGoogle(trouble=slow) as google:
        async with script(google, SEARCH_R1_SEARCH_CONCURRENCY="8") as (url, process):
            leaving = asyncio.create_task(post(url, {"queries": [str(number) for number in range(512)]}))
            while not google.requests:  # noqa: ASYNC110  (the server has no event for it)
                await asyncio.sleep(0.01)
            leaving.cancel()
            await asyncio.sleep(2.0)
            paid = len(google.requests)
            await stopped(process)
    assert paid <= 16
