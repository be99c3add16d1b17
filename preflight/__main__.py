"""Checks the setup before a training job uses a GPU: settings, packages, machine, model, data, search.

    python -m preflight
    python -m preflight --skip machine packages             on a machine without the GPUs
    python -m preflight --engine http://127.0.0.1:30000     also run one real rollout

It reads the environment variables of the launch scripts (./run_qwen2.5_3B.sh --help) and of the rollouts (README.md,
Settings), with the same defaults. It changes nothing. Each row is one check:

    ✓  right      ✗  wrong, with the remedy      !  works, but may be a mistake      –  skipped, with the reason

The exit status is 1 if there is a ✗, or with --strict a !.
"""

import argparse
import io
import logging
import os
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from evaluation.verdict_table import Table
from preflight.groups import run_groups
from preflight.setup import Setup

GROUPS = {  # one module each
    "settings": "values, and whether they are consistent",
    "packages": "slime, Ray, SGLang, Megatron and the plugin's requirements",
    "machine": "GPUs, ports, Ray, disk, shared memory",
    "model": "the checkpoint, and its Megatron form",
    "template": "the chat template",
    "data": "the prompts and their gold answers",
    "search": "retriever or web search, and the cache; makes a few searches, or one paid web search",
    "router": "the token router, in router modes",
    "engine": "a running engine and one rollout on it; only with --engine",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    began, table = time.monotonic(), Table(sys.stdout)
    setup = Setup(os.environ, args.engine, args.train_args)
    skip = {*args.skip, *([] if args.engine else ["engine"])}
    for row in run_groups(setup, [name for name in GROUPS if name not in skip]):
        table.write(row)
    table.write_count(time.monotonic() - began)
    return int(table.marks["✗"] > 0 or (args.strict and table.marks["!"] > 0))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    groups = "\n".join(f"  {name:<10} {what}" for name, what in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m preflight",
        description=__doc__,
        epilog=f"groups of checks:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--strict", action="store_true", help="fail on ! as well")
    add("--engine", metavar="URL", type=_url, help="http://HOST:PORT of a running SGLang or router")
    add("--skip", metavar="GROUP", nargs="+", action="extend", default=[], choices=GROUPS, help="skip these groups")
    add("train_args", metavar="-- ARGUMENT", nargs="*", help="further arguments for slime's train.py")
    return parser.parse_args(argv)


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme == "http" and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:  # of the port
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address of the form http://HOST:PORT")
    return text.rstrip("/")


def prepare_process() -> None:
    """Silences warnings of the libraries and the plugin; the table reports what matters."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger().addHandler(logging.NullHandler())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # ✓ and ✗ in every locale


if __name__ == "__main__":
    prepare_process()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
