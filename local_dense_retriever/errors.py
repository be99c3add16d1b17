"""The exception that the command-line tools report as one sentence, without a traceback."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """The user's input is wrong: a path, a file's content, a flag or a port.

    The message is one sentence that names the fault and its remedy.
    """


def run_resumable(work: Callable[[], None]) -> int:
    """Runs a resumable command; returns the exit code."""
    try:
        work()
    except (InputError, OSError) as error:  # OSError: no permission, disk full, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 0
