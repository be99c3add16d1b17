"""What the token router costs: latency it adds, look-ups among many trajectories, memory at its bound.

    python -m benchmarks.bench_token_router [--json FILE]

Latency: 64 sessions of four turns, each with a new observation, against a worker that takes 500 ms and, as engines do,
tokenises what comes as text. The same text goes to the worker directly and through a router, which tokenises only what
is new; a client that has the ids and sends them to the worker spares both. Worker and router are processes of their
own. Look-ups and memory: the store itself, in this process, with 10,000 trajectories of 1,760 ids, then with twice as
many tokens as its bound allows.
"""

import asyncio
import contextlib
import itertools
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from transformers import AutoTokenizer

from benchmarks.reporting import ROOT, finish, parser, print_table
from benchmarks.servers import apart, engine_reply, serve
from demo.models import policy_folder
from evaluation.server_process import ServerProcess, free_port
from token_router.token_trie import Piece, TokenTrie

SESSIONS, TURNS, WORKER_S = 64, 4, 0.5
REPLY = "<think>The documents do not say where the place lies, so I search again.</think>\n<search>place</search>"
OBSERVATION = (
    "\n\n<information>" + "The place lies in the highlands in the south of the country. " * 20 + "</information>"
)
PROMPT = "Answer the question by searching. " * 20
STORED = 10_000
START_S = 60.0
MOST_ADDED_MS, MOST_LOOKUP_MS = 3.0, 1.0
BYTES_PER_TOKEN = 20 + 5  # ids, log-probabilities, and about five characters of text


# ---- Latency ---------------------------------------------------------------------------------------------------------


def worker(model: str, pipe: Connection) -> None:
    """Answers every request with the same ids after WORKER_S. Sends its port."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.encode(REPLY, add_special_tokens=False)

    async def generate(request: web.Request) -> web.Response:
        body = await request.json()
        prompt = body["input_ids"] if "input_ids" in body else tokenizer.encode(body["text"], add_special_tokens=False)
        await asyncio.sleep(WORKER_S)
        return engine_reply(REPLY, ids, len(prompt))

    serve({"/generate": generate}, pipe)


@contextlib.contextmanager
def router(model: str, upstream: int) -> Iterator[int]:
    """The port of a router in front of the worker."""
    port = free_port()
    command = [sys.executable, "-m", "token_router", "--port", str(port), "--tokenizer", model]
    command += ["--upstream", f"http://127.0.0.1:{upstream}"]
    with tempfile.NamedTemporaryFile() as log:
        with ServerProcess("token router", command, port, Path(log.name), START_S, cwd=ROOT):
            yield port


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
    with apart(worker, model) as pipe, router(model, worker_port := pipe.recv()) as router_port:
        for _ in range(3):
            for kind, found in seconds.items():
                port = router_port if kind.startswith("routed") else worker_port
                found += asyncio.run(sessions(port, tokenizer, as_text="text" in kind))
    medians = {kind: 1000 * statistics.median(found) for kind, found in seconds.items()}
    added = medians["routed_text_ms"] - medians["direct_text_ms"]
    return {**medians, "added_ms": added, "routed_to_direct": medians["routed_text_ms"] / medians["direct_text_ms"]}


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
    bound, choose, before = 5_000_000, random.Random(0), _resident_bytes()
    store, put = TokenTrie(bound), 0
    for number in itertools.count():
        pieces = trajectory(number, choose)
        store.add(str(number), pieces)
        put += sum(len(piece.ids) for piece in pieces)
        if put >= 2 * bound:
            break
    size = (_resident_bytes() - before) / bound
    return {"bound_tokens": bound, "stored_tokens": store.tokens, "put_tokens": put, "bytes_per_token": size}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096


def main() -> int:
    """Prints the table; returns 1 if a bound is missed."""
    args = parser(__doc__).parse_args()
    held, calls, found = memory(), latency(str(policy_folder(ROOT / ".cache"))), lookups()
    added, p99, size = calls["added_ms"], found["p99_us"] / 1000, held["bytes_per_token"]
    rows = [
        ["text to the worker, median ms", f"{calls['direct_text_ms']:.1f}"],
        ["text to the router, median ms", f"{calls['routed_text_ms']:.1f}"],
        ["router / worker, text", f"{calls['routed_to_direct']:.4f}"],
        ["ids to the worker, median ms", f"{calls['direct_ids_ms']:.1f}"],
        [f"look-up among {STORED} trajectories, median µs", f"{found['median_us']:.0f}"],
        ["look-up, 99th percentile µs", f"{found['p99_us']:.0f}"],
        ["resident bytes a token at the bound", f"{size:.1f}"],
    ]
    print_table(["what", "figure"], rows)
    is_bounded = held["stored_tokens"] <= held["bound_tokens"] and size <= BYTES_PER_TOKEN
    bounds = [
        (f"the router adds {added:.1f} ms to the same call (at most {MOST_ADDED_MS})", added <= MOST_ADDED_MS),
        (f"a look-up takes {p99:.2f} ms at the 99th percentile (at most {MOST_LOOKUP_MS})", p99 <= MOST_LOOKUP_MS),
        (f"{size:.1f} bytes a token at the bound (at most {BYTES_PER_TOKEN})", is_bounded),
    ]
    return finish(args, {"latency": calls, "lookups": found, "memory": held}, bounds)


if __name__ == "__main__":
    sys.exit(main())
