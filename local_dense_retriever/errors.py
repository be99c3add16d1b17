"""The exception that the command-line tools report as one sentence, without a traceback."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InputError(Exception):
    """The user's input is wrong: a path, a file, a flag, a port. The message is one sentence with the remedy."""


@contextmanager
def needing(what: str, install: str) -> Iterator[None]:
    """Reports a package that cannot be imported in this context."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{what} needs the package {error.name}: pip install {install}") from error


def run_command(work: Callable[[], int | None], interrupted: str = "run the same command again to continue") -> int:
    """Runs a command's work and returns the exit code: what `work` returns, or 0."""
    try:
        return work() or 0
    except (InputError, OSError) as error:  # OSError: no permission, disk full, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return 130
