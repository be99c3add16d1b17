"""Encoding queries on a CPU: by torch and by onnxruntime, alone and beside a busy process.

    python -m benchmarks.bench_encoder [--json FILE]

64 queries of 4 to 14 words, MiniLM, float32, each way in a process of its own, in turns:

    torch, threads that spin    as it was at 7fd94be: one batch, OpenMP's threads spin while they wait
    torch                       the same with OMP_WAIT_POLICY=PASSIVE, which local_dense_retriever sets
    onnxruntime                 what a CPU server runs

The neighbour is one process that computes without pause. Spinning shows in the CPU time that the same work takes beside
it; the clock also shows the cores that the neighbour takes. Agreement is counted over definitions of WordNet: the first
three passages of each query, place by place, against those of torch.
"""

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from benchmarks.bench_retriever import questions
from benchmarks.reporting import ROOT, finish, parser, print_table
from benchmarks.servers import apart
from benchmarks.wordnet_corpus import write_wordnet
from demo.models import encoder_folder, onnx_encoder_folder

CACHE = ROOT / ".cache"
BATCH, ROUNDS, REPEATS = 64, 5, 4
PASSAGES, QUERIES, TOPK = 5000, 500, 3
LEAST_GAIN, LEAST_AGREEMENT, MOST_EXTRA_CPU = 2.0, 0.99, 1.25


class Way(NamedTuple):
    name: str
    encoder: str  # torch or onnx
    spins: bool


WAYS = (
    Way("torch, threads that spin", "torch", True),
    Way("torch", "torch", False),
    Way("onnxruntime", "onnx", False),
)


class Cost(NamedTuple):
    clock_ms: float
    cpu_ms: float


def encode(way: Way, pipe: Connection) -> None:
    """Receives texts; sends (N, D) vectors, the milliseconds on the clock and of CPU."""
    import local_dense_retriever  # sets OMP_WAIT_POLICY

    assert local_dense_retriever
    if way.spins:
        del os.environ["OMP_WAIT_POLICY"]
    if way.encoder == "torch":
        from local_dense_retriever.torch_encoder import TorchEncoder

        encode_queries = TorchEncoder("minilm", str(encoder_folder())).encode_queries
    else:
        from local_dense_retriever.onnx_encoder import OnnxEncoder

        encode_queries = OnnxEncoder("minilm", onnx_encoder_folder(CACHE)).encode_queries
    while True:
        texts = pipe.recv()
        clock, cpu = time.perf_counter(), time.process_time()
        vectors = encode_queries(texts)
        pipe.send((vectors, Cost(1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - cpu))))


def compute(pipe: Connection) -> None:
    """The neighbour: keeps a core busy."""
    pipe.send("busy")
    for number in itertools.count():
        number * number


def costs(pipes: dict[str, Connection]) -> dict[str, Cost]:
    """The median of each way's costs of a batch; the ways take turns."""
    fresh = questions()
    found: dict[str, list[Cost]] = {name: [] for name in pipes}
    for _ in range(ROUNDS):
        for name, pipe in pipes.items():
            for _ in range(REPEATS):
                pipe.send(list(itertools.islice(fresh, BATCH)))
                found[name].append(pipe.recv()[1])
    return {name: Cost(*map(statistics.median, zip(*runs, strict=True))) for name, runs in found.items()}


def agreement(pipes: dict[str, Connection]) -> float:
    """The share of the first TOPK places of QUERIES that torch and onnxruntime fill alike."""
    files = write_wordnet(CACHE / "wordnet")
    with files.corpus.open(encoding="utf-8") as lines:
        passages = [json.loads(line)["contents"] for line in itertools.islice(lines, 0, None, 20)][:PASSAGES]
    queries = files.queries.read_text(encoding="utf-8").splitlines()[:QUERIES]
    places = [_first(pipes[name], passages, queries) for name in ("torch", "onnxruntime")]
    return float(np.mean(places[0] == places[1]))


def _first(pipe: Connection, passages: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """(QUERIES, TOPK) rows, best first."""
    vectors = []
    for texts in (passages, queries):
        pipe.send(texts)
        vectors.append(pipe.recv()[0])
    return np.argsort(-(vectors[1] @ vectors[0].T), axis=1, kind="stable")[:, :TOPK]


def main() -> int:
    """Prints the tables; returns 1 if a bound is missed."""
    args = parser(__doc__).parse_args()
    onnx_encoder_folder(CACHE)
    with ExitStack() as stack:
        pipes = {way.name: stack.enter_context(apart(encode, way)) for way in WAYS}
        costs(pipes)  # warms up
        alone = costs(pipes)
        agreed = agreement(pipes)
        with apart(compute) as neighbour:
            neighbour.recv()
            beside = costs(pipes)
    old = alone[WAYS[0].name]
    rows = []
    for way in WAYS:
        a, b = alone[way.name], beside[way.name]
        figures = (a.clock_ms, a.cpu_ms, b.clock_ms, b.cpu_ms)
        gains = (old.clock_ms / a.clock_ms, old.cpu_ms / a.cpu_ms, b.cpu_ms / a.cpu_ms)
        rows.append([way.name, *(f"{ms:.0f}" for ms in figures), *(f"{gain:.2f}" for gain in gains)])
    header = [
        "64 queries by",
        "alone ms",
        "CPU ms",
        "beside ms",
        "CPU ms",
        "times as fast",
        "by CPU",
        "CPU beside / alone",
    ]
    print_table(header, rows)
    new, new_beside = alone["onnxruntime"], beside["onnxruntime"]
    gain, extra = old.clock_ms / new.clock_ms, new_beside.cpu_ms / new.cpu_ms
    bounds = [
        (f"onnxruntime is {gain:.2f} times as fast as torch was (at least {LEAST_GAIN:g})", gain >= LEAST_GAIN),
        (f"{agreed:.4f} of the places agree (at least {LEAST_AGREEMENT})", agreed >= LEAST_AGREEMENT),
        (f"beside a neighbour it takes {extra:.2f} times the CPU (at most {MOST_EXTRA_CPU})", extra <= MOST_EXTRA_CPU),
    ]
    by_way = {way.name: {"alone": alone[way.name]._asdict(), "beside": beside[way.name]._asdict()} for way in WAYS}
    return finish(args, {"ways": by_way, "agreement": agreed}, bounds)


if __name__ == "__main__":
    sys.exit(main())
