"""What the token router costs: latency it adds, look-ups among many trajectories, memory at its bound.

    python -m benchmarks.bench_token_router [--json FILE]

Latency: 64 sessions of four turns, each with a new observation, against a worker that takes 500 ms and, as engines do,
tokenises what comes as text. The same text goes to the worker directly and through a router, which tokenises only what
is new; a client that has the ids and sends them to the worker spares both. Worker and router are processes of their
own. Look-ups and memory: the store itself, in this process, with 10,000 trajectories of 1,760 ids, then with twice as
many tokens as its bound allows.
"""

import asyncio
import itertools
import random
import time
from array import array
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from transformers import AutoTokenizer

from benchmarks.reporting import CACHE, Report, parser, run
from benchmarks.servers import apart, engine_reply, program, serve
from demo.models import policy_folder
from token_router.token_trie import Piece, TokenTrie

SESSIONS, TURNS, WORKER_S = 64, 4, 0.5
REPLY = "<think>The documents do not say where the place lies, so I search again.</think>\n<search>place</search>"
OBSERVATION = (
    "\n\n<information>" + "The place lies in the highlands in the south of the country. " * 20 + "</information>"
)
PROMPT = "Answer the question by searching. " * 20
STORED = 10_000
BYTES_PER_TOKEN = 20.0 + 5  # ids, log-probabilities, and about five characters of text
TEXT_TO_WORKER, TEXT_TO_ROUTER, IDS_TO_WORKER = "text to the worker", "text to the router", "ids to the worker"


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
    seconds: dict[str, list[float]] = {TEXT_TO_WORKER: [], TEXT_TO_ROUTER: [], IDS_TO_WORKER: []}
    with apart(worker, model) as pipe:
        upstream = pipe.recv()
        command = ("-m", "token_router", "--tokenizer", model, "--upstream", f"http://127.0.0.1:{upstream}")
        with program("token router", *command) as router:
            for _ in range(3):
                for kind, found in seconds.items():
                    port = router.port if kind == TEXT_TO_ROUTER else upstream
                    found += asyncio.run(sessions(port, tokenizer, as_text=kind != IDS_TO_WORKER))
    return {kind: 1000 * float(np.median(found)) for kind, found in seconds.items()}


def trajectory(number: int, choose: random.Random) -> list[Piece]:
    """A prompt, three replies, three observations; 1,760 ids."""

    def ids(count: int) -> "array[int]":
        return array("i", [choose.randrange(50_000) for _ in range(count)])

    pieces = [Piece(f"Question {number}: " + "answer by searching. " * 48, ids(200))]
    for turn in range(3):
        pieces.append(Piece(f"thought {number} {turn} " * 25, ids(120), True, array("d", [-0.1] * 120), "7"))
        pieces.append(Piece(f" document {turn} " * 140, ids(400)))
    return pieces


def lookups() -> list[float]:
    """Microseconds of finding the longest beginning of a text among the stored trajectories."""
    choose = random.Random(0)
    store = TokenTrie(10**9)
    texts = []
    for number in range(STORED):
        pieces = trajectory(number, choose)
        store.add(str(number), pieces)
        texts.append((str(number), "".join(piece.text for piece in pieces) + " and more"))
    found = []
    for namespace, text in choose.sample(texts, STORED // 2):
        began = time.perf_counter()
        store.longest(namespace, text)
        found.append(1e6 * (time.perf_counter() - began))
    return found


def bytes_per_token() -> float:
    """Resident bytes of a token at the store's bound, after twice as many were put in."""
    bound, choose, before = 5_000_000, random.Random(0), _resident_bytes()
    store, put = TokenTrie(bound), 0
    for number in itertools.count():
        pieces = trajectory(number, choose)
        store.add(str(number), pieces)
        put += sum(len(piece.ids) for piece in pieces)
        if put >= 2 * bound:
            break
    assert store.tokens <= bound
    return (_resident_bytes() - before) / bound


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096


def measure(report: Report) -> None:
    """Latency, look-ups and memory; memory first, while this process is small."""
    size, calls = bytes_per_token(), latency(str(policy_folder(CACHE)))
    median, p99 = np.percentile(lookups(), [50, 99]).tolist()
    figures = {f"{kind}, median ms": figure for kind, figure in calls.items()}
    figures[f"look-up among {STORED} trajectories, median µs"] = median
    figures["look-up, 99th percentile µs"] = p99
    figures["resident bytes a token at the bound"] = size
    report.table("the token router", [{"what": what, "figure": figure} for what, figure in figures.items()])
    report.bound("the router adds {} ms to the same call", calls[TEXT_TO_ROUTER] - calls[TEXT_TO_WORKER], most=3.0)
    report.bound("a look-up takes {} µs at the 99th percentile", p99, most=1000.0)
    report.bound("{} bytes a token at the bound", size, most=BYTES_PER_TOKEN)


if __name__ == "__main__":
    run(measure, parser(__doc__))
