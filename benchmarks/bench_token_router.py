"""What the token router costs: latency it adds, look-ups among many trajectories, memory at its bound.

    python benchmarks/bench_token_router.py [--json FILE]

Latency: 64 sessions of four turns, each with a new observation, against a worker that takes 500 ms and, as engines do,
tokenises what comes as text. The same text goes to the worker directly and through a router, which tokenises only what
is new; a client that has the ids and sends them to the worker spares both. Worker and router are processes of their
own. Look-ups and memory: the store itself, in this process, with 10,000 trajectories of 1,760 ids, then with twice as
many tokens as its bound allows.
"""

import asyncio
import contextlib
import multiprocessing
import random
import re
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402
from aiohttp import web  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from benchmarks.reporting import parser, print_table, verdict, write_json  # noqa: E402
from demo.models import policy_folder  # noqa: E402
from token_router.token_trie import Piece, TokenTrie  # noqa: E402

SESSIONS, TURNS, WORKER_S = 64, 4, 0.5
REPLY = "<think>The documents do not say where the place lies, so I search again.</think>\n<search>place</search>"
OBSERVATION = (
    "\n\n<information>" + "The place lies in the highlands in the south of the country. " * 20 + "</information>"
)
PROMPT = "Answer the question by searching. " * 20
STORED = 10_000
MOST_ADDED_MS, MOST_LOOKUP_MS = 3.0, 1.0
BYTES_PER_TOKEN = 20 + 5  # ids, log-probabilities, and about five characters of text


# ---- Latency ---------------------------------------------------------------------------------------------------------


def serve_worker(model: str, pipe: Connection) -> None:
    """A worker that answers every request with the same ids after WORKER_S; sends its port."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.encode(REPLY, add_special_tokens=False)
    triples = [[-0.5, token, None] for token in ids]

    async def generate(request: web.Request) -> web.Response:
        body = await request.json()
        prompt = body["input_ids"] if "input_ids" in body else tokenizer.encode(body["text"], add_special_tokens=False)
        await asyncio.sleep(WORKER_S)
        meta = {
            "finish_reason": {"type": "stop", "matched": "</search>"},
            "prompt_tokens": len(prompt),
            "output_token_logprobs": triples,
        }
        return web.json_response({"text": REPLY, "output_ids": ids, "meta_info": meta})

    async def main() -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/generate", generate)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.to_thread(pipe.recv)
        await runner.cleanup()

    asyncio.run(main())


@contextlib.contextmanager
def worker(model: str) -> Iterator[int]:
    """The worker's port."""
    pipe, other_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_worker, args=(model, other_end), daemon=True)
    process.start()
    try:
        yield pipe.recv()
    finally:
        pipe.send(None)
        process.join(10)


@contextlib.contextmanager
def router(model: str, upstream: int) -> Iterator[int]:
    """The port of a router in front of the worker."""
    command = [sys.executable, "-m", "token_router", "--port", "0", "--tokenizer", model]
    command += ["--upstream", f"http://127.0.0.1:{upstream}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r":(\d+),", line)
        if not found:
            raise RuntimeError(f"the router did not start: {line!r}")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(10)


async def sessions(port: int, tokenizer: Any, *, as_text: bool) -> list[float]:
    """Seconds of every call but each session's first, all sessions at once, begun at random moments."""
    seconds: list[float] = []
    choose = random.Random(0)
    observation_ids = tokenizer.encode(OBSERVATION, add_special_tokens=False)
    prompt_ids = tokenizer.encode(PROMPT, add_special_tokens=False)

    async def one(name: str, delay: float, session: aiohttp.ClientSession) -> None:
        text, ids = PROMPT, list(prompt_ids)
        await asyncio.sleep(delay)
        for turn in range(TURNS):
            body: dict[str, Any] = {"sampling_params": {"max_new_tokens": 64}, "return_logprob": True}
            body |= {"text": text} if as_text else {"input_ids": ids}
            began = time.perf_counter()
            headers = {"X-Search-R1-Trajectory": name}
            async with session.post(f"http://127.0.0.1:{port}/generate", json=body, headers=headers) as response:
                reply = await response.json()
            if turn:
                seconds.append(time.perf_counter() - began)
            text, ids = text + reply["text"] + OBSERVATION, ids + reply["output_ids"] + observation_ids

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        names = (f"{as_text}-{time.monotonic_ns()}-{number}" for number in range(SESSIONS))
        await asyncio.gather(*(one(name, choose.uniform(0, 2 * WORKER_S), session) for name in names))
    return seconds


def latency(model: str) -> dict[str, float]:
    """Median milliseconds of a call, over three rounds of each kind in turns."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    seconds: dict[str, list[float]] = {"direct_ids_ms": [], "direct_text_ms": [], "routed_text_ms": []}
    with worker(model) as worker_port, router(model, worker_port) as router_port:
        for _ in range(3):
            for kind, found in seconds.items():
                port = router_port if kind.startswith("routed") else worker_port
                found += asyncio.run(sessions(port, tokenizer, as_text="text" in kind))
    medians = {kind: 1000 * statistics.median(found) for kind, found in seconds.items()}
    return {**medians, "added_ms": medians["routed_text_ms"] - medians["direct_text_ms"]}


# ---- The store -------------------------------------------------------------------------------------------------------


def trajectory(number: int, choose: random.Random) -> list[Piece]:
    """A prompt, three replies, three observations; 1,760 ids."""

    def ids(count: int) -> "array[int]":
        return array("i", [choose.randrange(50_000) for _ in range(count)])

    pieces = [Piece(f"Question {number}: " + "answer by searching. " * 48, ids(200))]
    for turn in range(3):
        pieces.append(Piece(f"thought {number} {turn} " * 25, ids(120), True, array("d", [-0.1] * 120), "7"))
        pieces.append(Piece(f" document {turn} " * 140, ids(400)))
    return pieces


def lookups() -> dict[str, float]:
    """Microseconds of finding the longest beginning of a text among the stored trajectories."""
    choose = random.Random(0)
    store = TokenTrie(10**9)
    texts = []
    for number in range(STORED):
        pieces = trajectory(number, choose)
        store.add(str(number), pieces)
        texts.append((str(number), "".join(piece.text for piece in pieces) + " and more"))
    seconds = []
    for namespace, text in choose.sample(texts, STORED // 2):
        began = time.perf_counter()
        store.longest_by_text(namespace, text)
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    return {"median_us": 1e6 * statistics.median(seconds), "p99_us": 1e6 * seconds[int(0.99 * len(seconds))]}


def memory() -> dict[str, float]:
    """Resident bytes of a token at the store's bound, after twice as many were put in."""
    bound = 5_000_000
    choose = random.Random(0)
    before = _resident_bytes()
    store = TokenTrie(bound)
    put = 0
    number = 0
    while put < 2 * bound:
        pieces = trajectory(number, choose)
        store.add(str(number), pieces)
        put += sum(len(piece.ids) for piece in pieces)
        number += 1
    return {
        "bound_tokens": bound,
        "stored_tokens": store.tokens,
        "put_tokens": put,
        "bytes_per_token": (_resident_bytes() - before) / bound,
    }


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096


def main() -> int:
    """Prints the tables; returns 1 if a bound is missed."""
    args = parser(__doc__).parse_args()
    model = str(policy_folder(ROOT / ".cache"))
    memory_found = memory()
    latency_found = latency(model)
    lookups_found = lookups()
    print_table(
        ["what", "figure"],
        [
            ["text to the worker, median ms", f"{latency_found['direct_text_ms']:.1f}"],
            ["text to the router, median ms", f"{latency_found['routed_text_ms']:.1f}"],
            ["ids to the worker, median ms", f"{latency_found['direct_ids_ms']:.1f}"],
            [f"look-up among {STORED} trajectories, median µs", f"{lookups_found['median_us']:.0f}"],
            ["look-up, 99th percentile µs", f"{lookups_found['p99_us']:.0f}"],
            ["resident bytes a token at the bound", f"{memory_found['bytes_per_token']:.1f}"],
        ],
    )
    added, p99, size = latency_found["added_ms"], lookups_found["p99_us"] / 1000, memory_found["bytes_per_token"]
    held = (
        added <= MOST_ADDED_MS,
        p99 <= MOST_LOOKUP_MS,
        memory_found["stored_tokens"] <= memory_found["bound_tokens"] and size <= BYTES_PER_TOKEN,
    )
    print()
    print(verdict(f"the router adds {added:.1f} ms to the same call (at most {MOST_ADDED_MS})", held[0]))
    print(verdict(f"a look-up takes {p99:.2f} ms at the 99th percentile (at most {MOST_LOOKUP_MS})", held[1]))
    print(verdict(f"{size:.1f} bytes a token at the bound (at most {BYTES_PER_TOKEN})", held[2]))
    write_json(args.json, {"latency": latency_found, "lookups": lookups_found, "memory": memory_found})
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
