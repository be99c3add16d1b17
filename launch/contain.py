"""Runs a command and kills its whole process tree on exit; everything we stop goes through it.

    python launch/contain.py [--log FILE] [--environment FILE] [--end-session NAME] [--grace SECONDS] COMMAND …

When the command ends, it stops every process that the command started, including daemons in their own sessions, and
nothing else. It passes SIGTERM, SIGINT and SIGHUP to the command as SIGTERM, and kills it after the grace period. If
this process is killed itself, the kernel sends the command SIGTERM. The exit status is the command's, or 128 plus the
signal's number. If the log cannot be written, for example on a full disk, the command continues without it. Linux and
standard library only.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)  # before any fork
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
POLL_S = 0.1
LEFTOVER_GRACE_S = 5.0  # between SIGTERM and SIGKILL, for processes that outlive the command
KILL_TIMEOUT_S = 30.0  # a process that is stuck in a broken device or file server cannot be killed


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    received: list[int] = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # adopts descendants whose parent ends
    if args.log is None:
        status = contain(args, received)
    else:
        log = Log(args.log)
        with log.pipe() as output:
            status = contain(args, received, output)
        how = f"exit status {status}" if not received else f"stopped by {signal.Signals(received[0]).name}"
        log.write(f"== {args.name} ended at {time.strftime('%F %T')}: {how} ==\n".encode())
    if args.end_session:
        subprocess.run(["tmux", "kill-session", "-t", f"={args.end_session}"], stderr=subprocess.DEVNULL, check=False)
    return status


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--log", type=Path, help="append the command's output to this file, and show it")
    add("--name", default="the command", help="name of the command in the last line of the log")
    add("--environment", type=Path, help="file with the command's environment, written by `env -0`; it is removed")
    add("--end-session", metavar="NAME", help="finally, kill this tmux session")
    grace = "time to end after SIGTERM (default: %(default)s)"
    add("--grace", type=float, default=60.0, metavar="SECONDS", help=grace)
    # One list: argparse would swallow a `--` after a separate positional argument.
    add("command", nargs=argparse.REMAINDER, help="the command with its arguments")
    args = parser.parse_args(argv)
    if not args.command:
        parser.error("there is no command to run")
    return args


def prctl(option: int, value: int) -> None:
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


class Log:
    """A file that is appended to, and stdout. Neither a full disk nor a closed terminal stops the command."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._failed = False

    def write(self, chunk: bytes) -> None:
        try:
            self._write_all(self._file.fileno(), chunk)
            self._failed = False
        except OSError as error:
            if not self._failed:
                chunk = f"== {self._path} cannot be written: {error.strerror}; output is lost ==\n".encode() + chunk
            self._failed = True
        with contextlib.suppress(OSError):
            self._write_all(sys.stdout.fileno(), chunk)

    @staticmethod
    def _write_all(file: int, chunk: bytes) -> None:
        while chunk:
            chunk = chunk[os.write(file, chunk) :]

    @contextlib.contextmanager
    def pipe(self) -> Iterator[int]:
        """A file descriptor for a command's output, all of which is copied here."""
        reading, writing = os.pipe()

        def copy() -> None:
            while chunk := os.read(reading, 65536):
                self.write(chunk)

        copying = threading.Thread(target=copy)
        copying.start()
        try:
            yield writing
        finally:
            os.close(writing)
            copying.join(timeout=LEFTOVER_GRACE_S)


def contain(args: argparse.Namespace, received: list[int], output: int | None = None) -> int:
    """Runs the command until it ends or a signal is received; stops its descendants; returns the exit status."""
    parent = os.getpid()

    def end_with_parent() -> None:  # in the child
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(128 + signal.SIGTERM)

    environment = None
    if args.environment:
        entries = args.environment.read_bytes().split(b"\0")
        args.environment.unlink()  # it may hold keys
        environment = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
    try:
        child = subprocess.Popen(
            args.command,
            env=environment,
            stdin=subprocess.DEVNULL if output is not None else None,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal then reaches only us, and we stop the command cleanly
            preexec_fn=end_with_parent,
        )
    except OSError as error:
        message = f"error: cannot run {args.command[0]}: {error.strerror}\n".encode()
        os.write(output if output is not None else sys.stderr.fileno(), message)
        return 127
    while child.poll() is None and not received:
        reap_orphans(child)
        time.sleep(POLL_S)
    if child.poll() is None:
        child.terminate()
        if not wait_until(lambda: child.poll() is not None, args.grace):
            child.kill()
            child.wait()
    stop_descendants(child)
    if received:
        return 128 + received[0]
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def stop_descendants(child: subprocess.Popen) -> None:
    """Stops every descendant of this process: SIGTERM, then SIGKILL."""

    def gone() -> bool:
        child.poll()
        reap_orphans(child)
        return not descendants()

    def killed() -> bool:  # called repeatedly: a process may start another before it dies
        signal_all(signal.SIGKILL)
        return gone()

    signal_all(signal.SIGTERM)
    if not wait_until(gone, LEFTOVER_GRACE_S):
        wait_until(killed, KILL_TIMEOUT_S)


def signal_all(number: int) -> None:
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants() -> list[int]:
    """Process ids of all running descendants of this process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # the process has just ended
            # "pid (name) state parent …"; the name may hold anything, also blanks and brackets
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def reap_orphans(child: subprocess.Popen) -> None:
    """Reaps adopted processes that have ended; Popen reaps the command itself."""
    with contextlib.suppress(ChildProcessError):  # there is no child left
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child.pid:
            os.waitpid(ended.si_pid, 0)


def wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Polls until `done` returns True or the time is over; returns its last value."""
    deadline = time.monotonic() + timeout_s
    while not (finished := done()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return finished


if __name__ == "__main__":
    sys.exit(main())
