"""The retriever server under a rollout's load, its search alone, and its restart.

    python -m benchmarks.bench_retriever [--only throughput,search,restart] [--json FILE]

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
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from benchmarks.reporting import ROOT, finish, parser, print_table
from benchmarks.servers import apart
from demo.models import encoder_folder, onnx_encoder_folder
from evaluation.server_process import ServerProcess, free_port
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.searcher import Searcher

FILES = ROOT / ".cache" / "bench_retriever"
MINILM_DIM, E5_DIM, ROWS = 384, 768, 200_000
TOPK, BATCH = 3, 64
WORDS = (ROOT / "local_dense_retriever" / "toy_corpus.jsonl").read_text(encoding="utf-8").replace('"', " ").split()
ROUNDS = 3
START_S = 120.0

LEAST_DISTINCT, LEAST_REPEATED, LEAST_OF_DIRECT = 5.0, 15.0, 0.95
LEAST_SEARCH, LEAST_RECALL = 5.0, 0.999
MOST_READY_S, MOST_EXTRA_MB = 5.0, 900.0


# ---- Files and queries -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    index: Path
    corpus: Path


def files(rows: int, dim: int) -> Files:
    """A flat index of random unit vectors, and a corpus of as many passages of 60 words."""
    FILES.mkdir(parents=True, exist_ok=True)
    made = Files(FILES / f"{rows}x{dim}.index", FILES / f"{rows}.jsonl")
    if not made.index.exists():
        with apart(_write_index, made.index, rows, dim) as pipe:  # its memory is gone afterwards
            pipe.recv()
    if not made.corpus.exists():
        choose = random.Random(0)
        texts = [" ".join(choose.choices(WORDS, k=60)) for _ in range(1000)]
        temporary = made.corpus.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            for row in range(rows):
                file.write(json.dumps({"id": str(row), "contents": f'"Title {row}"\n{texts[row % 1000]}'}) + "\n")
        temporary.rename(made.corpus)
    return made


def _write_index(path: Path, rows: int, dim: int, pipe: Connection) -> None:
    import faiss

    index = faiss.IndexFlatIP(dim)
    for block in np.array_split(np.arange(rows), max(1, rows // 100_000)):
        index.add(unit_vectors(len(block), dim, int(block[0])))
    temporary = path.with_suffix(".tmp")
    faiss.write_index(index, str(temporary))
    temporary.rename(path)
    pipe.send("done")


def unit_vectors(rows: int, dim: int, seed: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def questions() -> Iterator[str]:
    """Questions without end, no two alike."""
    choose = random.Random(1)
    for number in itertools.count():
        yield " ".join([*choose.choices(WORDS, k=choose.randint(3, 13)), str(number)])


# ---- What is measured ------------------------------------------------------------------------------------------------


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
        *("--retriever_name", "minilm", "--retriever_model", str(onnx_encoder_folder(FILES.parent))),
    ]


@contextmanager
def our_server(made: Files, *flags: str) -> Iterator[ServerProcess]:
    """The real server, once it is ready."""
    port, script = free_port(), ROOT / "local_dense_retriever" / "retrieval_server.py"
    command = [sys.executable, str(script), *_flags(made), "--port", str(port), *flags]
    with tempfile.NamedTemporaryFile() as log:
        with ServerProcess("retriever", command, port, Path(log.name), START_S, ready="/ready") as server:
            yield server


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
    left = iter(queries)
    source = LocalRetriever(f"http://127.0.0.1:{port}", topk=TOPK, timeout_s=60.0)
    searcher = Searcher([source], concurrency=at_once, timeout_s=60.0, retries=0)

    async def rollout() -> None:
        for query in left:
            result = await searcher.search(query)
            assert result.error is None, result.error

    began = time.perf_counter()
    await asyncio.gather(*(rollout() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    await searcher.close()
    return len(queries) / seconds


# ---- The sections ----------------------------------------------------------------------------------------------------


def throughput() -> tuple[dict[str, Any], list[tuple[str, bool]]]:
    made = files(ROWS, MINILM_DIM)
    fresh = questions()

    def distinct(count: int) -> list[str]:
        return list(itertools.islice(fresh, count))

    def repeated(count: int) -> list[str]:
        queries = distinct(count // 8) * 8
        random.Random(2).shuffle(queries)
        return queries

    kinds = {"distinct": (distinct, 192, 960), "each asked 8 times": (repeated, 192, 3840)}
    runs: dict[tuple[str, str], list[Load]] = {}
    by_plugin, burst, straight = [], [], []
    with ExitStack() as stack:
        plain_pipe, direct_pipe = (stack.enter_context(apart(what, made)) for what in (plain_server, direct))
        plain = plain_pipe.recv()
        ours = stack.enter_context(our_server(made)).port
        direct_pipe.recv()
        for port in (plain, ours):
            asyncio.run(load(port, distinct(64), 64))
        for _ in range(ROUNDS):
            for kind, (make, few, many) in kinds.items():
                runs.setdefault((kind, "plain"), []).append(asyncio.run(load(plain, make(few), 64)))
                runs.setdefault((kind, "ours"), []).append(asyncio.run(load(ours, make(many), 64)))
            for _ in range(4):  # the machine's mood changes: short turns
                direct_pipe.send(distinct(512))
                straight.append(512 / direct_pipe.recv())
                by_plugin.append(asyncio.run(plugin_load(ours, distinct(1024), 256)))
                burst.append(asyncio.run(load(ours, distinct(512), 256)).queries_per_s)

    figures: dict[str, Any] = {}
    rows, bounds = [], []
    for kind, least in (("distinct", LEAST_DISTINCT), ("each asked 8 times", LEAST_REPEATED)):
        per_s, median, p99 = {}, {}, {}
        for who in ("plain", "ours"):
            per_s[who] = statistics.median(run.queries_per_s for run in runs[kind, who])
            latencies = sorted(itertools.chain.from_iterable(run.latencies_s for run in runs[kind, who]))
            median[who], p99[who] = statistics.median(latencies), latencies[int(0.99 * len(latencies))]
            rows.append([kind, who, f"{per_s[who]:.0f}", f"{1000 * median[who]:.0f}", f"{1000 * p99[who]:.0f}"])
        ratio = per_s["ours"] / per_s["plain"]
        figures[kind] = {"queries_per_s": per_s, "median_s": median, "p99_s": p99, "ratio": ratio}
        text = f"{kind}: p99 {1000 * p99['ours']:.0f} ms, below the plain server's median"
        bounds += [
            (f"{kind}: {ratio:.1f} times the plain server (at least {least:g})", ratio >= least),
            (text, p99["ours"] < median["plain"]),
        ]
    reached = statistics.median(a / b for a, b in zip(by_plugin, straight, strict=True))
    rows.append(["distinct, 256 rollouts of the plugin", "ours", f"{statistics.median(by_plugin):.0f}", "", ""])
    rows.append(["distinct, 256 clients", "ours", f"{statistics.median(burst):.0f}", "", ""])
    rows.append([f"distinct, batches of {BATCH}", "direct", f"{statistics.median(straight):.0f}", "", ""])
    figures["of_direct"] = {"by_plugin": by_plugin, "burst": burst, "direct": straight, "ratio": reached}
    bounds.append(
        (f"the plugin reaches {reached:.2f} of direct calls (at least {LEAST_OF_DIRECT})", reached >= LEAST_OF_DIRECT)
    )
    print_table(["64 clients, 200,000 × 384", "server", "queries/s", "median ms", "p99 ms"], rows)
    return figures, bounds


def _search_alone(made: Files, pipe: Connection) -> None:
    import faiss

    from local_dense_retriever.exact_index import ExactIndex

    queries = unit_vectors(BATCH, E5_DIM, 10**6)
    flat, exact = faiss.read_index(str(made.index)), ExactIndex(made.index)
    _, expected = flat.search(queries, TOPK)
    found = exact.search(queries, TOPK).rows
    recall = np.mean([len(set(a) & set(b)) / TOPK for a, b in zip(expected.tolist(), found.tolist(), strict=True)])
    seconds: dict[str, list[float]] = {"flat": [], "exact": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for row in range(BATCH // 2):
            flat.search(queries[row : row + 1], TOPK)
        seconds["flat"].append(2 * (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(5):
            exact.search(queries, TOPK)
        seconds["exact"].append((time.perf_counter() - began) / 5)
    pipe.send((seconds, float(recall)))


def search() -> tuple[dict[str, Any], list[tuple[str, bool]]]:
    with apart(_search_alone, files(ROWS, E5_DIM)) as pipe:
        seconds, recall = pipe.recv()
    per_s = {who: BATCH / statistics.median(runs) for who, runs in seconds.items()}
    ratio = per_s["exact"] / per_s["flat"]
    rows = [
        ["FAISS flat, one at a time", f"{per_s['flat']:.0f}", "1"],
        [f"exact, batches of {BATCH}", f"{per_s['exact']:.0f}", f"{recall:.4f}"],
    ]
    print_table(["search alone, 200,000 × 768", "queries/s", "recall@3"], rows)
    text = f"exact search: {ratio:.1f} times FAISS flat one at a time (at least {LEAST_SEARCH:g})"
    bounds = [
        (text, ratio >= LEAST_SEARCH),
        (f"recall@3 {recall:.4f} (at least {LEAST_RECALL})", recall >= LEAST_RECALL),
    ]
    return {"queries_per_s": per_s, "ratio": ratio, "recall_at_3": recall}, bounds


class Start(NamedTuple):
    ready_s: float
    resident_mb: float  # with 256 queries answered
    private_mb: float  # of that, what the kernel cannot drop and read from the files again


def start(made: Files, *flags: str) -> Start:
    began = time.perf_counter()
    with our_server(made, *flags) as server:
        ready_s = time.perf_counter() - began
        asyncio.run(load(server.port, list(itertools.islice(questions(), 256)), 64))
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        megabytes = {name: int(kb) / 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}
        return Start(ready_s, megabytes["VmRSS"], megabytes["RssAnon"])


def _cells(found: Start) -> list[str]:
    return [f"{found.ready_s:.1f}", f"{found.resident_mb:.0f}", f"{found.private_mb:.0f}"]


def restart() -> tuple[dict[str, Any], list[tuple[str, bool]]]:
    sizes = (ROWS, 1_000_000)
    figures: dict[str, Any] = {}
    rows, bounds = [], []
    for rows_count in sizes:
        start(files(rows_count, MINILM_DIM))  # writes the corpus's sidecar
    for backend in ("exact", "faiss"):
        small, large = (start(files(count, MINILM_DIM), "--index_backend", backend) for count in sizes)
        index_mb = files(sizes[1], MINILM_DIM).index.stat().st_size / 2**20
        for count, found in zip(sizes, (small, large), strict=True):
            rows.append([backend, f"{count:,} × {MINILM_DIM}", *_cells(found)])
        # A straight line through both sizes, in numbers (rows × dimension).
        scale = (21_015_324 * E5_DIM - sizes[1] * MINILM_DIM) / ((sizes[1] - sizes[0]) * MINILM_DIM)
        far = Start(*(b + max(0.0, b - a) * scale for a, b in zip(small, large, strict=True)))
        rows.append([f"{backend}, computed", f"21,015,324 × {E5_DIM}", *_cells(far)])
        figures[backend] = {"200k": small._asdict(), "1M": large._asdict(), "21M computed": far._asdict()}
        extra, ready_s = large.resident_mb - index_mb, large.ready_s
        text = f"{backend}: index {index_mb:.0f} MB and {extra:.0f} MB (below {MOST_EXTRA_MB:g})"
        bounds += [
            (f"{backend}: ready in {ready_s:.1f} s (below {MOST_READY_S:g})", ready_s < MOST_READY_S),
            (text, extra < MOST_EXTRA_MB),
        ]
    print_table(["backend", "vectors", "seconds to /ready", "resident MB", "private MB"], rows)
    return figures, bounds


SECTIONS = {"throughput": throughput, "search": search, "restart": restart}


def main() -> int:
    """Prints the tables; returns 1 if a bound is missed."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas (default: %(default)s)")
    args = arguments.parse_args()
    if unknown := set(args.only.split(",")) - set(SECTIONS):
        arguments.error(f"--only knows {', '.join(SECTIONS)}, not {', '.join(unknown)}")
    figures, bounds = {}, []
    for name in args.only.split(","):
        figures[name], found = SECTIONS[name]()
        bounds += found
        print(flush=True)
    return finish(args, figures, bounds)


if __name__ == "__main__":
    sys.exit(main())
