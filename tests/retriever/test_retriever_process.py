"""The server as a process: it listens at once, stops in good order, and can be killed under load."""

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from retriever_fakes import colour_server, wait_until_ready

from search_rollout.http_client import JsonClient
from search_rollout.search.passage import Passage


def retrieve(url: str, query: str) -> httpx.Response:
    return httpx.post(f"{url}/retrieve", json={"queries": [query], "topk": 1}, timeout=20, trust_env=False)


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_queue(url: str, queries: int) -> None:
    wait_for(lambda: gauge(url, "retriever_queue_queries") == queries)


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file; while it exists no search ends."""
    path = tmp_path / "hold"
    path.touch()
    return path


@contextmanager
def busy_server(hold: Path, **settings: float) -> Iterator[tuple["subprocess.Popen[str]", str, ThreadPoolExecutor]]:
    """A server that is searching "red" until `hold` is removed; and threads for clients."""
    with colour_server(hold=hold, **settings) as (process, url), ThreadPoolExecutor(4) as clients:
        wait_until_ready(url)
        running = clients.submit(retrieve, url, "red")
        wait_for(lambda: gauge(url, 'retriever_queries_total{how="queued"}') == 1)
        wait_for_queue(url, 0)
        yield process, url, clients
        hold.unlink(missing_ok=True)
        running.result()


def is_closed(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port)) != 0


def stopped(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and stderr."""
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def test_it_listens_at_once_and_serves_when_it_has_loaded() -> None:
    with colour_server(load_s=1.0) as (process, url):
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        early = httpx.get(f"{url}/ready", trust_env=False)
        assert early.status_code == 503 and "loading" in early.json()
        assert retrieve(url, "red").status_code == 503
        assert httpx.get(f"{url}/docs", trust_env=False).status_code == 503
        wait_until_ready(url)
        assert retrieve(url, "red").json() == {"result": [[{"id": "p0", "contents": "red"}]]}
        assert process.stdout is not None
        log = [process.stdout.readline() for _ in range(3)]
        assert log[1].startswith("ready: 4 passages") and log[2] == "Application startup complete.\n"


def test_a_kept_answer_takes_no_40_ms() -> None:
    """Which it does when the kernel holds a reply's second packet back until the first is acknowledged."""
    with colour_server() as (_, url), httpx.Client(base_url=url, trust_env=False) as client:
        wait_until_ready(url)
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            client.post("/retrieve", json={"queries": ["red"]})
            seconds.append(time.perf_counter() - began)
    assert min(seconds[1:]) < 0.03


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_it_loads_does_not_wait_for_the_load(how: signal.Signals) -> None:
    with colour_server(load_s=60) as (process, _):
        began = time.monotonic()
        process.send_signal(how)
        assert stopped(process) == (0, "stopped\n")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_queued_and_takes_nothing_new(how: signal.Signals, hold: Path) -> None:
    with busy_server(hold) as (process, url, clients):
        queued = [clients.submit(retrieve, url, colour) for colour in ("green", "blue")]
        wait_for_queue(url, 2)
        process.send_signal(how)
        wait_for(lambda: is_closed(url))
        assert not any(reply.done() for reply in queued)
        hold.unlink()
        assert {reply.result().json()["result"][0][0]["id"] for reply in queued} == {"p1", "p2"}
        assert stopped(process) == (0, "stopped\n")


def test_a_stop_is_bounded_although_a_search_never_ends(hold: Path) -> None:
    with busy_server(hold, stop_timeout_s=1) as (process, url, clients):
        lost = clients.submit(retrieve, url, "green")
        wait_for_queue(url, 1)
        process.send_signal(signal.SIGTERM)
        code, _ = stopped(process)
        assert code == 0
        assert lost.result().status_code == 503 and "stopping" in lost.result().json()["detail"]


def test_a_request_whose_client_hangs_up_leaves_the_queue(hold: Path) -> None:
    body = b'{"queries": ["green"]}'
    head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with busy_server(hold) as (_, url, _):
        with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as client:
            client.sendall(head + body)
            wait_for_queue(url, 1)
        wait_for_queue(url, 0)
        hold.unlink()
        assert retrieve(url, "blue").status_code == 200
        assert gauge(url, "retriever_batch_queries_sum") == 2  # red and blue


HEAD = b"POST /retrieve HTTP/1.1\r\nHost: x\r\n"


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=20)


@pytest.mark.parametrize("sent", [HEAD, HEAD + b"Content-Length: 100\r\n\r\n", HEAD + b"Content-Length: 100\r\n\r\n{"])
def test_a_half_sent_request_does_not_hold_up_a_stop(sent: bytes) -> None:
    with colour_server() as (process, url), connected(url) as client:
        wait_until_ready(url)
        client.sendall(sent)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert stopped(process) == (0, "stopped\n")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("head", [b"X: " + b"x" * 1000, b"\r\n".join([b"X: x"] * 200), b""])
def test_headers_of_any_size_are_not_collected(head: bytes) -> None:
    """They arrive before the key is looked at; 20 MB are sent, or as much as the server takes."""
    with colour_server() as (process, url), connected(url) as client:
        wait_until_ready(url)
        before = gauge(url, "process_resident_memory_bytes")
        client.sendall(HEAD + head)
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                client.sendall((head or b"X: ") * 10 if head else b"x" * 10_000)
        with contextlib.suppress(ConnectionError):
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
        assert gauge(url, "process_resident_memory_bytes") - before < 10e6
        assert process.poll() is None and retrieve(url, "red").status_code == 200


def test_a_body_that_does_not_arrive_is_refused_after_a_while() -> None:
    with colour_server(body_timeout_s=0.5) as (_, url), connected(url) as client:
        wait_until_ready(url)
        client.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        while client.recv(1000):  # and then it hangs up
            pass


def test_a_second_server_on_the_port_is_refused_while_the_first_loads() -> None:
    with colour_server(load_s=60) as (_, url):
        command = [sys.executable, "-m", "local_dense_retriever.retrieval_server", "--port", str(urlsplit(url).port)]
        second = subprocess.run(
            [*command, "--index_path", "none", "--corpus_path", "none"], capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: cannot use port {urlsplit(url).port} of 127.0.0.1")


@pytest.mark.slow
async def test_killed_twice_and_restarted_under_load_no_search_is_lost() -> None:
    """64 clients search one query after the other, and try again as the plugin's clients do."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    client = JsonClient(f"http://127.0.0.1:{port}", timeout_s=30, retries=60, pause_s=0.2)
    answered: asyncio.Queue[str] = asyncio.Queue()
    over = False

    async def rollout(number: int) -> None:
        for turn in itertools.count():
            if over:
                return
            colour = ("red", "green", "blue")[turn % 3]
            answer = await client.post("/retrieve", {"queries": [f"{colour} {number} {turn}"], "topk": 1})
            assert Passage.from_contents(answer["result"][0][0]["contents"]).title == colour
            answered.put_nowait(colour)

    with ExitStack() as servers:  # the last one stays until the rollouts are over
        async with asyncio.TaskGroup() as rollouts:
            for number in range(64):
                rollouts.create_task(rollout(number))
            for life in range(1, 4):
                process, _ = servers.enter_context(colour_server(port, load_s=0.3, search_s=0.05))
                async with asyncio.timeout(20):
                    for _ in range(200):
                        await answered.get()
                if life < 3:
                    process.kill()  # SIGKILL, with 64 searches under way
                    process.wait()
            over = True
    await client.close()
