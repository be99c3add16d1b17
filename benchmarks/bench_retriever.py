"""The retriever server under a rollout's load, its search alone, and its restart.

    python -m benchmarks.bench_retriever [--json FILE]

    throughput   64 clients with one query each, beside a plain server: one request, one encoding, one FAISS search, in
                 a thread pool. And 256 searches at once, by the plugin's client and by a request for each, beside the
                 same encoder and index called directly in full batches.
    search       exact search at batch 64 beside FAISS flat, one query at a time
    restart      seconds until /ready, and resident memory, with everything on disk; what 21 million passages would take

Vectors are random, since no search here depends on what they mean; queries are 4 to 14 words, encoded by MiniLM. What
is measured against each other takes turns. Files are made once, in .cache/bench_retriever (3 GB).
"""

import argparse
import asyncio
import itertools
import json
import random
import re
import socket
import statistics
import threading
import time
import timeit
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from benchmarks.reporting import CACHE, ROOT, Report, parser, run
from benchmarks.servers import apart, program
from demo.models import encoder_folder, onnx_encoder_folder
from evaluation.server_process import ServerProcess
from local_dense_retriever.flat_file import write_flat_header
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.searcher import Searcher

FILES = CACHE / "bench_retriever"
MINILM_DIM, E5_DIM, ROWS = 384, 768, 200_000
TOPK, BATCH = 3, 64
WORDS = (ROOT / "local_dense_retriever" / "toy_corpus.jsonl").read_text(encoding="utf-8").replace('"', " ").split()
ROUNDS = 3


@dataclass(frozen=True)
class Files:
    index: Path
    corpus: Path


def files(rows: int, dim: int) -> Files:
    """A flat index of random unit vectors, and a corpus of as many passages of 60 words; each made once."""
    FILES.mkdir(parents=True, exist_ok=True)
    made = Files(FILES / f"{rows}x{dim}.index", FILES / f"{rows}.jsonl")
    for path, write in ((made.index, _write_index), (made.corpus, _write_corpus)):
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            write(unfinished, rows, dim)
            unfinished.rename(path)
    return made


def _write_index(path: Path, rows: int, dim: int) -> None:
    with path.open("wb") as file:
        write_flat_header(file, rows, dim)
        for start in range(0, rows, 50_000):
            file.write(unit_vectors(min(50_000, rows - start), dim, start).tobytes())


def _write_corpus(path: Path, rows: int, dim: int) -> None:
    choose = random.Random(0)
    texts = [" ".join(choose.choices(WORDS, k=60)) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": str(row), "contents": f'"Title {row}"\n{texts[row % 1000]}'}) + "\n")


def unit_vectors(rows: int, dim: int, seed: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """(rows, dim), random, of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def questions() -> Iterator[str]:
    """Questions without end, no two alike."""
    choose = random.Random(1)
    for number in itertools.count():
        yield " ".join([*choose.choices(WORDS, k=choose.randint(3, 13)), str(number)])


def plain_server(made: Files, pipe: Connection) -> None:
    """One request, one encoding, one FAISS flat search, in FastAPI's thread pool. Sends its port."""
    import faiss
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from local_dense_retriever.corpus import Corpus
    from local_dense_retriever.torch_encoder import TorchEncoder

    encoder, corpus = TorchEncoder("minilm", str(encoder_folder())), Corpus(made.corpus)
    index = faiss.read_index(str(made.index))
    encoding = threading.Lock()  # fast tokenizers raise "Already borrowed" in two threads at once

    class Request(BaseModel):
        queries: list[str]
        topk: int = TOPK

    app = FastAPI()

    @app.post("/retrieve")
    def retrieve(request: Request) -> dict[str, Any]:
        with encoding:
            vectors = encoder.encode_queries(request.queries)
        _, rows = index.search(vectors, request.topk)
        return {"result": [[passage._asdict() for passage in corpus.passages(found)] for found in rows.tolist()]}

    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    pipe.send(listening.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def direct(made: Files, pipe: Connection) -> None:
    """Receives lists of queries; sends the seconds that they take in full batches."""
    from local_dense_retriever.loading import add_index_arguments, load_retriever

    arguments = argparse.ArgumentParser()
    add_index_arguments(arguments)
    retriever = load_retriever(arguments.parse_args(_flags(made)), lambda what: None)
    retriever.search(["warm up"] * BATCH, TOPK)
    pipe.send("ready")
    while True:
        queries = pipe.recv()
        began = time.perf_counter()
        for start in range(0, len(queries), BATCH):
            retriever.search(queries[start : start + BATCH], TOPK)
        pipe.send(time.perf_counter() - began)


def _flags(made: Files) -> list[str]:
    return [
        *("--index_path", str(made.index), "--corpus_path", str(made.corpus)),
        *("--retriever_name", "minilm", "--retriever_model", str(onnx_encoder_folder(CACHE))),
    ]


def our_server(made: Files, *flags: str) -> AbstractContextManager[ServerProcess]:
    """The real server, once it is ready."""
    return program("retriever", "local_dense_retriever/retrieval_server.py", *_flags(made), *flags, ready="/ready")


class Load(NamedTuple):
    queries_per_s: float
    latencies_s: list[float]


async def load(port: int, queries: Sequence[str], clients: int) -> Load:
    """Clients that each ask one query after the other."""
    left = iter(queries)
    latencies: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for query in left:
            began = time.perf_counter()
            async with session.post("/retrieve", json={"queries": [query], "topk": TOPK}) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()
            latencies.append(time.perf_counter() - began)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return Load(len(queries) / (time.perf_counter() - began), latencies)


async def plugin_load(port: int, queries: Sequence[str], at_once: int) -> float:
    """Queries a second of rollouts in one process, which share requests as the plugin's do."""
    source = LocalRetriever(f"http://127.0.0.1:{port}", topk=TOPK, timeout_s=60.0)
    searcher = Searcher([source], concurrency=at_once, timeout_s=60.0, retries=0)
    left = iter(queries)

    async def rollout() -> None:
        for query in left:
            result = await searcher.search(query)
            assert result.error is None, result.error

    began = time.perf_counter()
    await asyncio.gather(*(rollout() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    await searcher.close()
    return len(queries) / seconds


def throughput(report: Report) -> None:
    """The server beside the plain one, and the plugin beside direct calls."""
    made, fresh = files(ROWS, MINILM_DIM), questions()

    def ask(port: int, count: int, clients: int = 64, *, repeats: int = 1) -> Load:
        queries = list(itertools.islice(fresh, count // repeats)) * repeats
        random.Random(2).shuffle(queries)
        return asyncio.run(load(port, queries, clients))

    runs: dict[tuple[str, str], list[Load]] = defaultdict(list)
    by_plugin, burst, straight = [], [], []
    with ExitStack() as stack:
        plain_pipe, direct_pipe = (stack.enter_context(apart(what, made)) for what in (plain_server, direct))
        plain = plain_pipe.recv()
        ours = stack.enter_context(our_server(made)).port
        direct_pipe.recv()
        for port in (plain, ours):
            ask(port, 64)
        for _ in range(ROUNDS):
            for asked, repeats, many in (("distinct", 1, 960), ("each asked 8 times", 8, 3840)):
                runs[asked, "plain"].append(ask(plain, 192, repeats=repeats))
                runs[asked, "ours"].append(ask(ours, many, repeats=repeats))
            for _ in range(4):  # the machine's mood changes: short turns
                direct_pipe.send(list(itertools.islice(fresh, 512)))
                straight.append(512 / direct_pipe.recv())
                by_plugin.append(asyncio.run(plugin_load(ours, list(itertools.islice(fresh, 1024)), 256)))
                burst.append(ask(ours, 512, 256).queries_per_s)

    served: dict[tuple[str, str], dict[str, Any]] = {}
    for (asked, server), loads in runs.items():
        latencies_ms = [1000 * second for one in loads for second in one.latencies_s]
        served[asked, server] = {
            **{"64 clients": asked, "server": server},
            "queries/s": statistics.median(one.queries_per_s for one in loads),
            **{"median ms": statistics.median(latencies_ms), "p99 ms": float(np.percentile(latencies_ms, 99))},
        }
    report.table("200,000 × 384 vectors", list(served.values()))
    rates = {"rollouts of the plugin": by_plugin, "clients": burst, f"direct calls, batches of {BATCH}": straight}
    rows = [{"256 distinct queries at once by": who, "queries/s": statistics.median(rates[who])} for who in rates]
    report.table("the same vectors", rows)
    for asked, least in (("distinct", 5.0), ("each asked 8 times", 15.0)):
        plain_row, our_row = (served[asked, server] for server in ("plain", "ours"))
        ratio = our_row["queries/s"] / plain_row["queries/s"]
        report.bound(f"{asked}: {{}} times the plain server", ratio, least=least)
        text = f"{asked}: p99 {{}} ms, and the plain server's median"
        report.bound(text, our_row["p99 ms"], most=plain_row["median ms"])
    reached = statistics.median(a / b for a, b in zip(by_plugin, straight, strict=True))
    report.bound("the plugin reaches {} of direct calls", reached, least=0.95)


def _search_alone(made: Files, pipe: Connection) -> None:
    """Sends the queries/s of both, and the recall."""
    import faiss

    from local_dense_retriever.exact_index import ExactIndex

    queries = unit_vectors(BATCH, E5_DIM, 10**6)
    flat, exact = faiss.read_index(str(made.index)), ExactIndex(made.index)
    _, expected = flat.search(queries, TOPK)
    found = exact.search(queries, TOPK).rows
    recall = np.mean([len(set(a) & set(b)) / TOPK for a, b in zip(expected.tolist(), found.tolist(), strict=True)])

    def one_at_a_time() -> None:
        for query in queries[: BATCH // 2]:
            flat.search(query[None], TOPK)

    flat_s, exact_s = [], []
    for _ in range(ROUNDS):
        flat_s.append(timeit.timeit(one_at_a_time, number=1) / (BATCH // 2))
        exact_s.append(timeit.timeit(lambda: exact.search(queries, TOPK), number=5) / (5 * BATCH))
    pipe.send((1 / statistics.median(flat_s), 1 / statistics.median(exact_s), float(recall)))


def search(report: Report) -> None:
    """Exact search beside FAISS, without encoder and server."""
    with apart(_search_alone, files(ROWS, E5_DIM)) as pipe:
        flat, exact, recall = pipe.recv()
    names = ("search alone, 200,000 × 768", "queries/s", "recall@3")
    rows = [("FAISS flat, one at a time", flat, 1.0), (f"exact, batches of {BATCH}", exact, recall)]
    report.table("search", [dict(zip(names, row, strict=True)) for row in rows])
    report.bound("exact search: {} times FAISS flat one at a time", exact / flat, least=5.0)
    report.bound("recall@3 {}", recall, least=0.999)


class Start(NamedTuple):
    ready_s: float
    resident_mb: float  # with 256 queries answered
    private_mb: float  # of that, what the kernel cannot drop and read from the files again


def start(made: Files, *flags: str) -> Start:
    """Starts the server, asks it, and stops it."""
    began = time.perf_counter()
    with our_server(made, *flags) as server:
        ready_s = time.perf_counter() - began
        asyncio.run(load(server.port, list(itertools.islice(questions(), 256)), 64))
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        megabytes = {name: int(kb) / 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}
        return Start(ready_s, megabytes["VmRSS"], megabytes["RssAnon"])


def restart(report: Report) -> None:
    """Starts over small and large indexes, and what they mean for 21 million vectors."""
    small_made, large_made = (files(count, MINILM_DIM) for count in (ROWS, 1_000_000))
    for made in (small_made, large_made):
        start(made)  # writes the corpus's sidecar
    # A straight line through both sizes, in numbers (rows × dimension).
    scale = (21_015_324 * E5_DIM - 1_000_000 * MINILM_DIM) / ((1_000_000 - ROWS) * MINILM_DIM)
    rows, large = [], {}
    for backend in ("exact", "faiss"):
        small, large[backend] = (start(made, "--index_backend", backend) for made in (small_made, large_made))
        far = Start(*(b + max(0.0, b - a) * scale for a, b in zip(small, large[backend], strict=True)))
        found = {"200,000 × 384": small, "1,000,000 × 384": large[backend], "computed: 21,015,324 × 768": far}
        rows += [{"backend": backend, "vectors": size, **one._asdict()} for size, one in found.items()]
    report.table("restart", rows)
    index_mb = large_made.index.stat().st_size / 2**20
    for backend, one in large.items():
        report.bound(f"{backend}: ready in {{}} s", one.ready_s, most=5.0)
        report.bound(f"{backend}: index {index_mb:.0f} MB and {{}} MB", one.resident_mb - index_mb, most=900.0)


def measure(report: Report) -> None:
    """All three parts."""
    throughput(report)
    search(report)
    restart(report)


if __name__ == "__main__":
    run(measure, parser(__doc__))
