"""SIGTERM ends a program in order, however it was started."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUSY = """
import asyncio
from evaluation.interruption import terminating_interrupts

async def work():
    while True:  # in Python code nearly all of the time, so that a signal arrives there
        sum(range(1000))
        await asyncio.sleep(0)

async def main():
    print("ready", flush=True)
    try:
        await asyncio.gather(*(work() for _ in range(8)))
    finally:
        await asyncio.sleep(0)
        print("orderly", flush=True)

terminating_interrupts()
try:
    with asyncio.Runner() as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "background"])
def test_sigterm_lets_asyncio_end_its_tasks(ignored: bool) -> None:
    handling = "--ignore-signal=INT" if ignored else "--default-signal=INT"
    command = ["env", handling, sys.executable, "-c", BUSY]
    for _ in range(5):  # a signal may hit anywhere
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            if ignored:
                process.send_signal(signal.SIGINT)  # as Ctrl-C does to all that the terminal's script has started
            process.terminate()
            assert process.communicate(timeout=60) == ("orderly\ninterrupted\n", "")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    command = ["env", "--ignore-signal=INT", sys.executable, "-c", BUSY]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.terminate()
        assert process.wait(timeout=60) == 0
