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
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_retriever import questions
from benchmarks.reporting import CACHE, Report, parser, run
from benchmarks.servers import apart
from benchmarks.wordnet_corpus import write_wordnet
from demo.models import encoder_folder, onnx_encoder_folder

BATCH, ROUNDS, REPEATS = 64, 5, 4
PASSAGES, QUERIES, TOPK = 5000, 500, 3
SPINNING, TORCH, ONNX = WAYS = ("torch, threads that spin", "torch", "onnxruntime")


class Cost(NamedTuple):
    clock_ms: float
    cpu_ms: float


def encode(way: str, pipe: Connection) -> None:
    """Receives texts; sends (N, D) vectors, the milliseconds on the clock and of CPU."""
    from local_dense_retriever.encoder_choice import load_encoder  # the package sets OMP_WAIT_POLICY

    if way == SPINNING:
        del os.environ["OMP_WAIT_POLICY"]
    folder, device = (onnx_encoder_folder(CACHE), None) if way == ONNX else (encoder_folder(), "cpu")
    encode_queries = load_encoder("minilm", str(folder), device=device).encode_queries
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
    return {name: Cost(*np.median(runs, axis=0).tolist()) for name, runs in found.items()}


def agreement(pipes: dict[str, Connection]) -> float:
    """The share of the first TOPK places of QUERIES that torch and onnxruntime fill alike."""
    files = write_wordnet(CACHE / "wordnet")
    with files.corpus.open(encoding="utf-8") as lines:
        passages = [json.loads(line)["contents"] for line in itertools.islice(lines, 0, None, 20)][:PASSAGES]
    queries = files.queries.read_text(encoding="utf-8").splitlines()[:QUERIES]

    def places(pipe: Connection) -> NDArray[np.int64]:  # (QUERIES, TOPK)
        pipe.send(passages)
        stored, _ = pipe.recv()
        pipe.send(queries)
        asked, _ = pipe.recv()
        return np.argsort(-(asked @ stored.T), axis=1, kind="stable")[:, :TOPK]

    return float(np.mean(places(pipes[TORCH]) == places(pipes[ONNX])))


def measure(report: Report) -> None:
    """Each way's costs, alone and beside the neighbour."""
    onnx_encoder_folder(CACHE)
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(apart(encode, name)) for name in WAYS}
        costs(pipes)  # warms up
        alone = costs(pipes)
        agreed = agreement(pipes)
        with apart(compute) as neighbour:
            neighbour.recv()
            beside = costs(pipes)
    old = alone[SPINNING]
    rows: dict[str, dict[str, Any]] = {
        name: {
            **{"64 queries by": name, "alone ms": one.clock_ms, "alone CPU ms": one.cpu_ms},
            **{"beside ms": beside[name].clock_ms, "beside CPU ms": beside[name].cpu_ms},
            **{"times as fast": old.clock_ms / one.clock_ms, "by CPU": old.cpu_ms / one.cpu_ms},
            "CPU beside / alone": beside[name].cpu_ms / one.cpu_ms,
        }
        for name, one in alone.items()
    }
    report.table("encoding on a CPU", list(rows.values()))
    report.bound("onnxruntime is {} times as fast as torch was", rows[ONNX]["times as fast"], least=2.0)
    report.bound("{} of the places agree", agreed, least=0.99)
    report.bound("beside a neighbour it takes {} times the CPU", rows[ONNX]["CPU beside / alone"], most=1.25)


if __name__ == "__main__":
    run(measure, parser(__doc__))
