"""Workers of the token router: how they come and go, which one is chosen, and what happens when one dies."""

import asyncio
import io
import socket

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict
from router_fakes import FakeWorker, Router, Turn, router, said, until
from yarl import URL

from token_router.workers import Workers


def refused_url() -> str:
    """The URL of a port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


async def ask(client: Router, key: str = "", **headers: str) -> tuple[int, dict]:
    if key:
        headers["X-SMG-Routing-Key"] = key
    return await client.request("POST", "/generate", json={"text": "Q"}, headers=headers)


def always(text: str = "a") -> FakeWorker:
    return FakeWorker(lambda _: said(text))


# --- registration


async def test_an_engine_of_todays_slime_registers_is_used_and_leaves() -> None:
    async with always() as worker, router() as client:
        assert (await client.request("GET", "/health"))[0] == 503
        body = {"url": worker.url, "worker_type": "regular", "bootstrap_port": None}
        for _ in range(2):  # the second time changes nothing
            assert (await client.request("POST", "/workers", json=body))[0] == 200
        listed = (await client.request("GET", "/workers"))[1]["workers"]
        assert [{**one, "id": ""} for one in listed] == [
            {"id": "", "url": worker.url, "worker_type": "regular", "is_healthy": True, "load": 0}
        ]
        assert (await ask(client))[0] == 200
        assert (await client.request("DELETE", f"/workers/{listed[0]['id']}"))[0] == 200
        assert (await client.request("GET", "/workers"))[1] == {"workers": []}
        status, answer = await client.request("DELETE", f"/workers/{listed[0]['id']}")
        assert (status, answer["error"]["code"]) == (404, "no_such_worker")
        assert (await ask(client))[0] == 503


async def test_an_engine_of_early_slime_registers_is_used_and_leaves() -> None:
    async with always() as worker, router() as client:
        for _ in range(2):
            assert (await client.request("POST", "/add_worker", params={"url": worker.url + "/"}))[0] == 200
        assert await client.request("GET", "/list_workers") == (200, {"urls": [worker.url]})
        assert (await ask(client))[0] == 200
        assert (await client.request("POST", "/remove_worker", params={"url": worker.url}))[0] == 200
        assert await client.request("GET", "/list_workers") == (200, {"urls": []})


async def test_a_worker_may_be_removed_by_its_url_in_the_path() -> None:
    async with router("http://127.0.0.1:1") as client:
        assert (await client.request("DELETE", "/workers/http%3A%2F%2F127.0.0.1%3A1"))[0] == 200
        assert (await client.request("GET", "/workers"))[1] == {"workers": []}


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:1", "ftp://a", "http://", "http://a?b=c", 7, "http://[::1"])
async def test_a_malformed_url_is_not_registered(url: object) -> None:
    async with router() as client:
        assert "not the URL of a worker" in await client.error("/workers", {"url": url}, 400, "bad_url")


async def test_health_counts() -> None:
    async with FakeWorker([said("abc")]) as worker, router(worker, refused_url()) as client:
        await client.generate(text="Q")
        assert await client.request("GET", "/health") == (
            200,
            {"status": "ok", "workers": 2, "healthy_workers": 2, "stored_tokens": 4, "trajectories": 1},
        )


# --- choice


async def test_the_worker_with_fewest_requests_in_flight_is_chosen() -> None:
    go_on = asyncio.Event()
    async with FakeWorker(lambda _: said("a", wait=go_on)) as one, FakeWorker(lambda _: said("a", wait=go_on)) as two:
        async with router(one, two) as client:
            asking = [asyncio.create_task(ask(client)) for _ in range(10)]
            await until(lambda: len(one.calls) + len(two.calls) == 10)
            assert (len(one.calls), len(two.calls)) == (5, 5)
            assert [worker.load for worker in client.workers] == [5, 5]
            go_on.set()
            assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 10
            assert [worker.load for worker in client.workers] == [0, 0]


async def test_a_worker_that_was_chosen_often_is_chosen_again_once_it_is_the_idlest() -> None:
    go_on = asyncio.Event()
    async with always() as often, FakeWorker(lambda _: said("a", wait=go_on)) as slow, router(often) as client:
        for _ in range(5):
            await ask(client)
        client.workers.add(slow.url)
        asking = [asyncio.create_task(ask(client, "stays")) for _ in range(2)]
        await until(lambda: len(slow.calls) == 2)
        assert (await ask(client))[0] == 200
        assert len(often.calls) == 6
        go_on.set()
        await asyncio.gather(*asking)


async def test_idle_workers_take_turns() -> None:
    async with always() as one, always() as two, router(one, two) as client:
        for _ in range(6):
            await ask(client)
    assert (len(one.calls), len(two.calls)) == (3, 3)


@pytest.mark.parametrize("header", ["X-SMG-Routing-Key", "X-Search-R1-Trajectory"])
async def test_requests_with_the_same_key_go_to_the_same_worker(header: str) -> None:
    async with always("1") as one, always("2") as two, router(one, two) as client:
        answers = {key: [] for key in "abcdef"}
        for _ in range(3):
            for key in answers:
                answers[key].append((await ask(client, **{header: key}))[1]["text"])
    assert all(len(set(texts)) == 1 for texts in answers.values())
    assert len({texts[0] for texts in answers.values()}) == 2


async def test_slimes_key_counts_more_than_the_trajectory() -> None:
    async with always("1") as one, always("2") as two, router(one, two) as client:
        answers = [await ask(client, "k", **{"X-Search-R1-Trajectory": str(number)}) for number in range(6)]
    assert len({answer["text"] for _, answer in answers}) == 1


async def test_a_key_whose_worker_is_gone_sticks_to_another() -> None:
    async with always("1") as one, always("2") as two, router(one, two) as client:
        first = (await ask(client, "k"))[1]["text"]
        await client.request("POST", "/remove_worker", params={"url": {"1": one, "2": two}[first].url})
        for _ in range(3):
            assert (await ask(client, "k"))[1]["text"] != first


def test_only_so_many_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_router.workers.MAX_STICKY_KEYS", 10)
    workers = Workers()
    workers.add("http://a")
    for number in range(100):
        workers.choose(str(number), ())
    assert len(workers._sticky) == 10


# --- failure


async def test_a_worker_that_refuses_is_left_out_after_the_first_try() -> None:
    dead = refused_url()
    async with always() as alive, router(dead, alive) as client:
        for number in range(5):
            assert (await ask(client, f"k{number}"))[0] == 200
        by_url = {worker.url: worker for worker in client.workers}
        assert (by_url[dead].is_healthy, by_url[dead].chosen) == (False, 1)
        assert by_url[alive.url].is_healthy
        assert (await client.request("GET", "/health"))[1]["healthy_workers"] == 1


async def test_a_request_dropped_in_the_middle_is_sent_to_another_worker() -> None:
    async with FakeWorker(lambda _: Turn(drop=True)) as broken, always() as sound, router(broken, sound) as client:
        reply = await client.generate(text="Q")
        record = await client.by_text("Qa")
        assert client.store.tokens == 2
    assert (len(broken.calls), len(sound.calls)) == (1, 1)
    assert broken.calls == sound.calls
    assert (reply["text"], record["loss_mask"]) == ("a", [0, 1])


async def test_a_reply_that_breaks_off_in_its_middle_is_not_used() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"text": "wrong"')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    broken = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, always() as sound, router(broken, sound) as client:
        assert (await client.generate(text="Q"))["text"] == "a"


async def test_when_every_worker_fails_each_was_tried_once_and_the_message_names_them() -> None:
    dead = refused_url()
    async with FakeWorker(lambda _: Turn(drop=True)) as broken, router(dead, broken) as client:
        for tries in (1, 2):
            message = await client.error("/generate", {"text": "Q"}, 502, "workers_failed")
            assert dead in message and broken.url in message
            assert len(broken.calls) == tries  # dead ones are tried too where none is known to be alive
        assert (await client.request("GET", "/health"))[0] == 503
        assert client.store.tokens == 0


async def test_without_workers_the_message_says_how_to_name_one() -> None:
    async with router() as client:
        for path, body in [
            ("/generate", {"text": "Q"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Q"}]}),
            ("/anything", {}),
        ]:
            assert "--upstream" in await client.error(path, body, 503, "no_worker")


async def test_a_worker_that_comes_back_is_noticed_without_a_request() -> None:
    worker = FakeWorker(lambda _: said("a"), other=lambda *_: web.Response())
    async with worker:
        pass  # it had a port; now nobody listens there
    async with router(worker.url, probe_pause_s=0.05) as client:
        await client.error("/generate", {"text": "Q"}, 502, "workers_failed")
        assert (await client.request("GET", "/health"))[0] == 503
        async with worker:
            await until(lambda: all(one.is_healthy for one in client.workers))
            assert (await client.request("GET", "/health"))[0] == 200
            assert worker.calls == []


async def test_a_worker_that_answers_its_probe_with_an_error_is_not_back() -> None:
    asked = []

    def unwell(request: web.Request, _: bytes) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503)

    async with FakeWorker(lambda _: Turn(drop=True), other=unwell) as worker:
        async with router(worker, probe_pause_s=0.02) as client:
            await client.error("/generate", {"text": "Q"}, 502, "workers_failed")
            await until(lambda: len(asked) > 2)
            assert set(asked) == {"/health"} and not next(iter(client.workers)).is_healthy


async def test_a_worker_that_registers_again_is_taken_for_alive() -> None:
    async with always() as worker, router(worker) as client:
        next(iter(client.workers)).is_healthy = False
        await client.request("POST", "/workers", json={"url": worker.url})
        assert next(iter(client.workers)).is_healthy


# --- everything else


async def test_any_other_request_is_passed_on_byte_for_byte() -> None:
    seen = []

    def other(request: web.Request, body: bytes) -> web.Response:
        seen.append((request.method, request.raw_path, request.headers.copy(), body))
        headers = [("X-Twice", "1"), ("X-Twice", "2"), ("Keep-Alive", "timeout=5"), ("Content-Type", "a/b; c=d")]
        return web.Response(status=207, reason="Why Not", body=b"\x00\xff\r\n", headers=CIMultiDict(headers))

    async with FakeWorker(other=other) as worker, router(worker) as client:
        path = "/a%2Fb//c%20d/../e?x=%41+1&x=&y"
        url = URL(client.url + path, encoded=True)
        headers = {"X-Own": "ü", "Connection": "X-Hop, keep-alive", "X-Hop": "1", "Content-Encoding": "gzip"}
        body = bytes(range(256)) * 5000
        async with client.session.put(url, data=io.BytesIO(body), headers=headers) as answer:
            assert (answer.status, answer.reason, await answer.read()) == (207, "Why Not", b"\x00\xff\r\n")
            assert answer.headers.getall("X-Twice") == ["1", "2"]
            assert answer.headers["Content-Type"] == "a/b; c=d" and "Keep-Alive" not in answer.headers
    method, raw_path, got_headers, got_body = seen[0]
    assert (method, raw_path, got_body) == ("PUT", path, body)
    assert (got_headers["X-Own"], got_headers["Content-Encoding"]) == ("ü", "gzip")
    assert "X-Hop" not in got_headers and "Transfer-Encoding" not in got_headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "POST"])
@pytest.mark.parametrize("path", ["/get_model_info", "/generate"])
async def test_a_request_without_a_body_is_the_same_with_and_without_the_router(method: str, path: str) -> None:
    if (method, path) == ("POST", "/generate"):
        return  # the router's own
    seen, answers = [], []

    def other(request: web.Request, body: bytes) -> web.Response:
        seen.append((request.method, request.path, body, sorted({**request.headers, "Host": ""}.items())))
        return web.json_response({"model_path": "m"})

    async with FakeWorker(other=other) as worker, router(worker) as client:
        for url in (worker.url, client.url):
            async with client.session.request(method, url + path, headers={"User-Agent": "u"}) as answer:
                answers.append((answer.status, sorted({**answer.headers, "Date": ""}.items()), await answer.read()))
    assert seen[0] == seen[1] and answers[0] == answers[1]
    assert answers[1][2] == (b"" if method == "HEAD" else b'{"model_path": "m"}')


async def test_a_compressed_answer_stays_compressed() -> None:
    def other(*_: object) -> web.Response:
        response = web.Response(body=b"a" * 5000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with FakeWorker(other=other) as worker, router(worker) as client:
        async with client.session.get(client.url + "/x", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert (await answer.read())[:2] == b"\x1f\x8b"


async def test_a_stream_arrives_while_it_is_made() -> None:
    go_on = asyncio.Event()

    async def worker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(worker, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, router(url) as client, client.session.get(client.url + "/events") as answer:
        assert await answer.content.readany() == b"one"
        go_on.set()
        assert await answer.content.read() == b"two"


async def test_a_stream_that_breaks_off_breaks_off_for_the_caller_too() -> None:
    async def worker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(worker, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, router(url) as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.session.get(client.url + "/events") as answer:
                await answer.read()


async def test_a_redirect_and_a_cookie_are_the_callers_business() -> None:
    seen = []

    def other(request: web.Request, _: bytes) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return web.Response(status=302, headers={"Location": "/elsewhere", "Set-Cookie": "a=b"})

    async with FakeWorker(other=other) as worker, router(f"http://localhost:{worker.port}") as client:
        for _ in range(2):
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
                async with session.get(client.url + "/x", allow_redirects=False) as answer:
                    assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")
                    assert answer.headers["Set-Cookie"] == "a=b"
    assert seen == [None, None]
