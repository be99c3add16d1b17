"""The retriever server with encoder and index on a GPU: queries/s and latencies of many clients.

    python -m benchmarks.bench_gpu_retriever [--rows 1000000] [--json FILE]

The real server with its own flags, over a flat index of random vectors of MiniLM's dimension and a corpus of as many
passages; queries are 4 to 14 words, no two alike, so no result comes from the cache. Without a GPU it says so and does
nothing. It has not been run on one yet.
"""

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_retriever import MINILM_DIM, Files, load, our_server, questions, unit_vectors
from benchmarks.reporting import finish, parser, print_table
from local_dense_retriever.flat_file import write_flat_header

CLIENTS = (1, 64, 256)
BLOCK_ROWS = 50_000


def write_files(folder: Path, rows: int) -> Files:
    """A flat index of random unit vectors, written without FAISS, and its corpus."""
    made = Files(folder / "random.index", folder / "corpus.jsonl")
    with made.index.open("wb") as file:
        write_flat_header(file, rows, MINILM_DIM)
        for start in range(0, rows, BLOCK_ROWS):
            file.write(unit_vectors(min(BLOCK_ROWS, rows - start), MINILM_DIM, start).astype(np.float32).tobytes())
    with made.corpus.open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": str(row), "contents": f'"Title {row}"\n{"A passage of words. " * 15}'}) + "\n")
    return made


def main() -> int:
    """Prints the table; returns the exit status."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="vectors and passages (default: 1,000,000)")
    options.add_argument("--queries", type=int, default=20_000, help="queries per number of clients (default: 20,000)")
    options.add_argument("--cpu", action="store_true", help="measure this machine's CPU instead")
    args = options.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        print("no GPU is visible to torch: nothing measured")
        return 0
    fresh = questions()
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        made = write_files(Path(folder), args.rows)
        with our_server(made, "--index_backend", "exact", "--max_batch", "256") as server:
            asyncio.run(load(server.port, list(itertools.islice(fresh, 256)), 64))  # warm
            for clients in CLIENTS:
                queries = list(itertools.islice(fresh, max(10, args.queries * clients // CLIENTS[-1])))
                found = asyncio.run(load(server.port, queries, clients))
                latencies = sorted(found.latencies_s)
                median, p99 = statistics.median(latencies), latencies[int(0.99 * len(latencies))]
                rows.append((clients, f"{found.queries_per_s:.0f}", f"{median * 1e3:.1f}", f"{p99 * 1e3:.1f}"))
                measured = {"queries_per_s": found.queries_per_s, "median_s": median, "p99_s": p99}
                figures.append({"clients": clients, "queries": len(queries), **measured})
    device = "cpu" if args.cpu else torch.cuda.get_device_name(0)
    print(f"{device}: {args.rows:,} x {MINILM_DIM}, MiniLM encodes each query")
    print_table(("clients", "queries/s", "median ms", "p99 ms"), rows)
    return finish(args, {"device": device, "rows": args.rows, "load": figures}, [])


if __name__ == "__main__":
    sys.exit(main())
