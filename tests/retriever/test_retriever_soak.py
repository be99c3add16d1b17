"""A server under load from good and bad clients, killed twice: every answer is the one that plain FAISS gives.

SOAK_S=600 in the environment makes it ten minutes.
"""

import asyncio
import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from retriever_fakes import wait_until_ready, write_corpus, write_flat_index

from local_dense_retriever import encoder_choice, retrieval_server
from search_rollout.http_client import JsonClient, RequestFailed

SOAK_S = float(os.environ.get("SOAK_S", "20"))
GROWTH_BYTES = 20e6 if SOAK_S >= 120 else 80e6  # of a server's memory in the last two thirds; a short life warms up
SEARCH_TIMEOUT_S = 30.0
GOOD, LEAVING, RUBBISH, SLOW = 48, 6, 5, 5  # clients
PASSAGES, QUERIES, TOPK = 20_000, 1000, 3
HEAD = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class HashEncoder:
    """A text's vector depends on every character of it."""

    name = "hash"
    dim = 64

    def __init__(self, *_: object) -> None: ...

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        vectors = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dim) for text in queries]
        made = np.array(vectors, dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    encode_passages = encode_queries


def expected_ids(folder: Path) -> dict[str, list[str]]:
    """Writes corpus and index; the ids that plain FAISS finds for each query."""
    texts = [f"passage {row}" for row in range(PASSAGES)]
    vectors = HashEncoder().encode_passages(texts)
    write_corpus(folder / "c.jsonl", texts)
    write_flat_index(folder / "flat.index", vectors)
    queries = [f"query {number}" for number in range(QUERIES)]
    plain = faiss.IndexFlatIP(HashEncoder.dim)
    plain.add(vectors)
    rows = plain.search(HashEncoder().encode_queries(queries), TOPK)[1]
    return {query: [f"p{row}" for row in found] for query, found in zip(queries, rows.tolist(), strict=True)}


def start_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    flags = ["--index_path", folder / "flat.index", "--corpus_path", folder / "c.jsonl", "--port", port]
    command = [sys.executable, __file__, *map(str, flags), "--cache_size", "200"]
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        )


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.slow
async def test_good_clients_get_the_right_answers_whatever_others_do_and_though_the_server_is_killed_twice(
    tmp_path: Path,
) -> None:
    expected = expected_ids(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    counts = {"answered": 0, "failed": 0, "left": 0, "rubbish": 0, "slow": 0}
    over = asyncio.Event()
    client = JsonClient(f"http://127.0.0.1:{port}", timeout_s=SEARCH_TIMEOUT_S, retries=200, pause_s=0.1)
    choose = random.Random(0)

    async def search() -> None:
        queries = choose.sample(sorted(expected), choose.randint(1, 4))
        began = time.monotonic()
        try:
            answer = await client.post("/retrieve", {"queries": queries, "topk": TOPK})
        except RequestFailed:
            assert time.monotonic() - began > SEARCH_TIMEOUT_S
            counts["failed"] += 1
            return
        found = {
            query: [document["id"] for document in hits] for query, hits in zip(queries, answer["result"], strict=True)
        }
        assert found == {query: expected[query] for query in queries}
        counts["answered"] += 1

    async def leave() -> None:
        """Hangs up in the middle of a request or of its search."""
        body = b'{"queries": ["%d"]}' % choose.randrange(10**6)
        async with connection(port) as (_, writer):
            writer.write((HEAD % len(body) + body)[: choose.randint(1, 200)])
            await asyncio.sleep(choose.uniform(0, 0.05))
        counts["left"] += 1

    async def rubbish() -> None:
        body = choose.randbytes(choose.randint(0, 3000))
        head = HEAD % len(body) if choose.random() < 0.7 else choose.randbytes(100)
        async with connection(port) as (reader, writer), asyncio.timeout(1):
            writer.write(head + body)
            assert not (await reader.readline()).startswith((b"HTTP/1.1 2", b"HTTP/1.1 500")), body
        counts["rubbish"] += 1

    async def slow() -> None:
        body = b'{"queries": ["query 7"], "topk": %d}' % TOPK
        async with connection(port) as (reader, writer):
            for byte in HEAD % len(body) + body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
            status = await reader.readline()
        assert status[9:12] in (b"200", b"503", b""), status  # loading, or just killed
        counts["slow"] += 1

    async def repeat(action: Callable[[], Awaitable[None]]) -> None:
        while not over.is_set():
            if action is search:
                await search()
                continue
            with contextlib.suppress(OSError, TimeoutError):  # while the server is down
                await action()
            await asyncio.sleep(0.05)  # so that they do not take most of the machine

    level: dict[int, list[int]] = {}
    actions = [(search, GOOD), (leave, LEAVING), (rubbish, RUBBISH), (slow, SLOW)]
    process = start_server(tmp_path, port)
    try:
        async with asyncio.TaskGroup() as clients:
            for action, number in actions:
                for _ in range(number):
                    clients.create_task(repeat(action))
            for life in itertools.count(1):
                await asyncio.to_thread(wait_until_ready_again, f"http://127.0.0.1:{port}")
                level[life] = []
                end = time.monotonic() + SOAK_S / 3
                while time.monotonic() < end:
                    await asyncio.sleep(0.5)
                    level[life].append(memory_bytes(process.pid))
                if life == 3:
                    break
                process.kill()  # SIGKILL, with searches under way
                process.wait()
                process = start_server(tmp_path, port)
            over.set()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        await client.close()
    print(counts, {life: [round(seen[at] / 1e6) for at in (0, len(seen) // 3, -1)] for life, seen in level.items()})
    assert counts["failed"] == 0  # a restart takes a few seconds of SEARCH_TIMEOUT_S
    assert all(count > SOAK_S / 2 for kind, count in counts.items() if kind != "failed")
    for seen in level.values():
        assert seen[-1] < seen[len(seen) // 3] + GROWTH_BYTES


def wait_until_ready_again(url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(Exception):
            return wait_until_ready(url)
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


if __name__ == "__main__":
    encoder_choice.load_encoder = HashEncoder  # type: ignore[assignment]
    retrieval_server.run()
