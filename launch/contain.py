"""Runs a command, and leaves nothing of it behind.

    python launch/contain.py [--log FILE] [--environment FILE] [--end-session NAME] [--grace SECONDS] COMMAND …

When the command ends, whatever it had started ends too, daemons in sessions of their own included; nothing else is
touched. SIGTERM, SIGINT and SIGHUP are passed on to the command as SIGTERM; after the grace period it is killed. The
exit status is the command's, or 128 + the signal's number. Linux only, standard library only.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
POLL_S = 0.1
LEFTOVER_GRACE_S = 5.0  # for what the command left behind, between SIGTERM and SIGKILL
KILL_TIMEOUT_S = 30.0  # a process that waits for a broken device or file server cannot be killed at all


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)
    told = listen_for_signals()
    adopt_orphans()
    environment = read_environment(args.environment) if args.environment else None
    command = [args.command, *args.arguments]
    if args.log is None:
        status = contain(command, told, args.grace, environment)
    else:
        with args.log.open("ab") as log:
            status = contain_with_log(command, told, args.grace, environment, log)
            how = f"exit status {status}" if not told else f"stopped by {signal.Signals(told[0]).name}"
            tell(f"== {args.name} ended at {time.strftime('%F %T')}: {how} ==\n".encode(), log)
    if args.end_session:
        subprocess.run(["tmux", "kill-session", "-t", f"={args.end_session}"], stderr=subprocess.DEVNULL, check=False)
    return status


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments; exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="append the command's output to this file, and show it")
    parser.add_argument("--name", default="the command", help="of the command, for the last line of the log")
    parser.add_argument(
        "--environment", type=Path, help="the command's environment as `env -0` writes it; removed once it is read"
    )
    parser.add_argument("--end-session", metavar="NAME", help="at the end, end this tmux session")
    parser.add_argument("--grace", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


def listen_for_signals() -> list[int]:
    """A list that the signals which ask us to stop are added to, from now on."""
    told: list[int] = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: told.append(received))
    return told


def adopt_orphans() -> None:
    """Makes this process the new parent of every descendant whose own parent ends, instead of process 1."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def read_environment(path: Path) -> dict[bytes, bytes]:
    """The variables of a file that `env -0` wrote, which is removed: it may hold keys."""
    entries = path.read_bytes().split(b"\0")
    path.unlink()
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def contain_with_log(
    command: Sequence[str], told: list[int], grace_s: float, environment: dict[bytes, bytes] | None, log: BinaryIO
) -> int:
    """As `contain`; the output goes to the log and to our own stdout."""
    reading, writing = os.pipe()

    def copy() -> None:
        while chunk := os.read(reading, 65536):
            tell(chunk, log)

    copying = threading.Thread(target=copy)
    copying.start()
    try:
        return contain(command, told, grace_s, environment, output=writing)
    finally:
        os.close(writing)
        copying.join(timeout=LEFTOVER_GRACE_S)


def tell(chunk: bytes, log: BinaryIO) -> None:
    """Writes to the log, and to stdout as long as there is somebody who reads it."""
    log.write(chunk)
    log.flush()
    try:
        os.write(sys.stdout.fileno(), chunk)
    except OSError:  # the terminal is gone
        pass


def contain(
    command: Sequence[str],
    told: list[int],
    grace_s: float,
    environment: dict[bytes, bytes] | None = None,
    output: int | None = None,
) -> int:
    """Runs the command until it ends or `told` has a signal; then stops what is left of it. Returns the exit status."""
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL if output is not None else None,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal reaches us only, and we stop it in order
        )
    except OSError as error:
        message = f"error: cannot run {command[0]}: {error.strerror}\n".encode()
        os.write(output if output is not None else sys.stderr.fileno(), message)
        return 127
    while child.poll() is None and not told:
        reap_orphans(child)
        time.sleep(POLL_S)
    if child.poll() is None:
        child.terminate()
        if not wait_until(lambda: child.poll() is not None, grace_s):
            child.kill()
            child.wait()
    stop_descendants(child)
    if told:
        return 128 + told[0]
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def stop_descendants(child: subprocess.Popen) -> None:
    """Ends every descendant of this process: SIGTERM, then SIGKILL."""

    def gone() -> bool:
        child.poll()
        reap_orphans(child)
        return not descendants()

    for pid in descendants():
        send(pid, signal.SIGTERM)
    if wait_until(gone, LEFTOVER_GRACE_S):
        return

    def killed() -> bool:  # again and again: what is being killed may be starting others
        for pid in descendants():
            send(pid, signal.SIGKILL)
        return gone()

    wait_until(killed, KILL_TIMEOUT_S)


def descendants() -> list[int]:
    """The processes below this one that are still running."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # "pid (name) state parent …"; the name may hold anything, also blanks and brackets
                state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def reap_orphans(child: subprocess.Popen) -> None:
    """Lets adopted processes that have ended go; the command itself is left to its Popen."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == child.pid:
            return
        os.waitpid(ended.si_pid, 0)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it was done in time."""
    deadline = time.monotonic() + timeout_s
    while not (finished := done()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return finished


if __name__ == "__main__":
    sys.exit(main())
