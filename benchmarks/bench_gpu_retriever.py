"""The retriever server with encoder and index on a GPU: queries/s and latencies of many clients.

    python -m benchmarks.bench_gpu_retriever [--rows 1000000] [--json FILE]

The real server with its own flags, over a flat index of random vectors of MiniLM's dimension and a corpus of as many
passages; queries are 4 to 14 words, no two alike, so no result comes from the cache. Without a GPU it says so and does
nothing. It has not been run on one yet.
"""

import asyncio
import itertools

import numpy as np
import torch

from benchmarks.bench_retriever import MINILM_DIM, files, load, our_server, questions
from benchmarks.reporting import Report, parser, run

CLIENTS = (1, 64, 256)


def measure(report: Report) -> None:
    """A row for each number of clients."""
    args = report.args
    if not args.cpu and not torch.cuda.is_available():
        print("no GPU is visible to torch: nothing measured")
        return
    fresh, rows = questions(), []
    with our_server(files(args.rows, MINILM_DIM), "--index_backend", "exact", "--max_batch", "256") as server:
        asyncio.run(load(server.port, list(itertools.islice(fresh, 256)), 64))  # warm
        for clients in CLIENTS:
            queries = list(itertools.islice(fresh, max(10, args.queries * clients // CLIENTS[-1])))
            found = asyncio.run(load(server.port, queries, clients))
            median_s, p99_s = np.percentile(found.latencies_s, [50, 99]).tolist()
            row = {"clients": clients, "queries/s": found.queries_per_s}
            rows.append({**row, "median ms": 1000 * median_s, "p99 ms": 1000 * p99_s})
    device = "cpu" if args.cpu else torch.cuda.get_device_name(0)
    report.table(f"{device}: {args.rows:,} x {MINILM_DIM}, MiniLM encodes each query", rows)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="vectors and passages (default: 1,000,000)")
    options.add_argument("--queries", type=int, default=20_000, help="queries per number of clients (default: 20,000)")
    options.add_argument("--cpu", action="store_true", help="measure this machine's CPU instead")
    run(measure, options)
