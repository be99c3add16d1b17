"""Regenerates docs/WALKTHROUGH.md: runs each command on the page and writes what it printed below it.

    python3 docs/regenerate_walkthrough.py                    in a fresh clone: 15 minutes, most of them the demo
    python3 docs/regenerate_walkthrough.py --only "search-r1 chat"    only the commands that contain this text

A command is the `$` line of a ```console block. The folder of the newest demo run replaces the one that the page names.
Fails if a command is longer than 100 characters or is silent for a minute.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "WALKTHROUGH.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>.+)\n(?P<output>(?:.*\n)*?)```\n(?:\n_.+_\n)?")
ASKED = re.compile(r"^question: (.+)$", re.MULTILINE)  # what the page shows as asked is asked again
RUN = re.compile(r"runs/demo-\d{8}-\d{6}-seed\d+(?:-\d+)?")
MAX_COMMAND = 100  # characters that somebody can be asked to type
MAX_SILENCE_S = 60.0
FIRST, LAST = 60, 40  # lines that are kept of a longer output
WIDTH = 160


def main() -> int:
    """Rewrites the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only commands that contain this text")
    only = parser.parse_args().only
    page, troubles, position = PAGE.read_text(encoding="utf-8"), [], 0
    while block := BLOCK.search(page, position):
        command = block["command"]
        position = block.end()
        if only not in command:
            continue
        shown, trouble = run(command, "".join(f"{question}\n" for question in ASKED.findall(block["output"])))
        troubles += trouble
        page = page[: block.start()] + shown + page[block.end() :]
        position = block.start() + len(shown)
        newest = max((ROOT / "runs").glob("demo-*"), key=lambda folder: folder.stat().st_mtime, default=None)
        if newest is not None and command.startswith("make demo"):
            page = page[:position] + RUN.sub(f"runs/{newest.name}", page[position:])
        PAGE.write_text(page, encoding="utf-8")
    print("\n".join(troubles) or "the page is as it should be", file=sys.stderr)
    return 1 if troubles else 0


def run(command: str, typed: str) -> tuple[str, list[str]]:
    """The command's block with its output, and what is wrong with it."""
    print(f"$ {command}", flush=True)
    lines, silence, began = [], 0.0, time.monotonic()
    last = began
    for line in _output(command, typed):
        silence, last = max(silence, time.monotonic() - last), time.monotonic()
        print(line, flush=True)
        if not line.startswith("WARNING: "):  # pip's, about this machine's package index
            lines.append(line.rstrip() if len(line) <= WIDTH else f"{line[:WIDTH]}…")
    silence = max(silence, time.monotonic() - last)
    if len(lines) > FIRST + LAST:
        lines = [*lines[:FIRST], "…", *lines[-LAST:]]
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    note = f"_Took {minutes}:{seconds:02d}; the longest time without a line was {silence:.0f} s._"
    troubles = []
    if len(command) > MAX_COMMAND:
        troubles.append(f"{len(command)} characters: {command}")
    if silence > MAX_SILENCE_S:
        troubles.append(f"silent for {silence:.0f} s: {command}")
    return "\n".join(["```console", f"$ {command}", *lines, "```", "", note, ""]), troubles


def _output(command: str, typed: str) -> Iterator[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(["bash", "-c", command], cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(typed)
        process.stdin.close()
        for line in process.stdout:
            yield line.rstrip("\n").replace(str(ROOT), "/root/search-r1")


if __name__ == "__main__":
    sys.exit(main())
