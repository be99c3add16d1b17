"""Exact search on a GPU over as many vectors as wiki-18 has: queries/s, and the fraction of memory bandwidth reached.

    python -m benchmarks.bench_gpu_search [--rows 21015324] [--dim 768] [--json FILE]

Random vectors in fp16, made on the GPU (32 GB for wiki-18), searched by the retriever's own code, without its rescoring
from the file. A pass over all vectors is bounded by memory bandwidth, which is measured here by a copy.
Without a GPU it says so and does nothing. It has not been run on one yet.
"""

import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.reporting import finish, parser, print_table
from local_dense_retriever.exact_index import coarse_search

WIKI_18_ROWS, E5_DIM, CANDIDATES = 21_015_324, 768, 64
BATCHES = (1, 64, 256)
REPEATS = 10
COPY_BYTES = 4 << 30


def seconds(work: Callable[[], object]) -> float:
    """Mean of REPEATS runs, after one to warm up."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / REPEATS


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds(lambda: target.copy_(source))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=WIKI_18_ROWS, help="vectors (default: wiki-18's 21,015,324)")
    options.add_argument("--dim", type=int, default=E5_DIM, help="numbers of a vector (default: 768)")
    args = options.parse_args()
    if not torch.cuda.is_available():
        print("no GPU is visible to torch: nothing measured")
        return
    device = torch.device("cuda", 0)
    size = args.rows * args.dim * 2
    free = torch.cuda.mem_get_info(device)[0]
    if size + 2 * COPY_BYTES > free:
        print(f"{args.rows} vectors and room to work need {(size + 2 * COPY_BYTES) / 1e9:.0f} GB of GPU memory and "
              f"{free / 1e9:.0f} are free: give fewer --rows")  # fmt: skip
        return
    reached = bandwidth(device)
    torch.cuda.empty_cache()
    vectors = torch.empty(args.rows, args.dim, dtype=torch.float16, device=device).normal_()
    rows, figures = [], []
    for batch in BATCHES:
        queries = torch.randn(batch, args.dim)
        took = seconds(partial(coarse_search, [(0, vectors)], queries, CANDIDATES))
        share = size / took / reached
        rows.append((batch, f"{took * 1e3:.1f}", f"{batch / took:.0f}", f"{share:.2f}"))
        figures.append({"batch": batch, "seconds": took, "queries_per_s": batch / took, "of_bandwidth": share})
    print(
        f"{torch.cuda.get_device_name(device)}: {args.rows} x {args.dim} fp16, a copy reaches {reached / 1e9:.0f} GB/s"
    )
    print_table(("batch", "ms a pass", "queries/s", "of bandwidth"), rows)
    machine = {"gpu": torch.cuda.get_device_name(device), "rows": args.rows, "dim": args.dim}
    finish(args, {**machine, "copy_bytes_per_s": reached, "batches": figures}, [])


if __name__ == "__main__":
    main()
