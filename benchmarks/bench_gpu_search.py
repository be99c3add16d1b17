"""Exact search on a GPU over as many vectors as wiki-18 has: queries/s, and the fraction of memory bandwidth reached.

    python -m benchmarks.bench_gpu_search [--rows 21015324] [--cpu] [--json FILE]

Random vectors in fp16, made on the GPU (32 GB for wiki-18), searched by the retriever's own code, without its rescoring
from the file. A pass over all vectors is bounded by memory bandwidth, which is measured here by a copy.
Without a GPU it says so and does nothing. It has not been run on one yet.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.benchmark import Timer

from benchmarks.reporting import Report, parser, run
from local_dense_retriever.exact_index import coarse_search, half_dtype

WIKI_18_ROWS, E5_DIM, CANDIDATES = 21_015_324, 768, 64
BATCHES = (1, 64, 256)
REPEATS = 10
COPY_BYTES = 4 << 30


def seconds(work: Callable[[], object]) -> float:
    """Mean of REPEATS runs, after some to warm up; waits for the GPU."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.timeit(REPEATS).mean


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source))


def measure(report: Report) -> None:
    """A row for each size of a batch."""
    args = report.args
    if not args.cpu and not torch.cuda.is_available():
        print("no GPU is visible to torch: nothing measured")
        return
    device = torch.device("cpu") if args.cpu else torch.device("cuda", 0)
    name = "CPU" if args.cpu else torch.cuda.get_device_name(device)
    size = args.rows * E5_DIM * 2
    copied = min(COPY_BYTES, size)
    if not args.cpu and size + 2 * copied > (free := torch.cuda.mem_get_info(device)[0]):
        raise RuntimeError(
            f"{args.rows} vectors and room to work need {(size + 2 * copied) / 1e9:.0f} GB of GPU memory and "
            f"{free / 1e9:.0f} are free: give fewer --rows"
        )
    reached = bandwidth(device, copied)
    torch.cuda.empty_cache()
    vectors = torch.empty(args.rows, E5_DIM, dtype=half_dtype(device.type), device=device).normal_()
    rows = []
    for batch in BATCHES:
        took = seconds(partial(coarse_search, [(0, vectors)], torch.randn(batch, E5_DIM), CANDIDATES))
        row = {"batch": batch, "ms a pass": 1000 * took, "queries/s": batch / took}
        rows.append({**row, "of bandwidth": size / took / reached})
    title = f"{name}: {args.rows} x {E5_DIM} in {vectors.dtype}, a copy reaches {reached / 1e9:.0f} GB/s"
    report.table(title, rows)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=WIKI_18_ROWS, help="vectors (default: wiki-18's 21,015,324)")
    options.add_argument("--cpu", action="store_true", help="measure this machine's CPU instead, in bfloat16")
    run(measure, options)
