"""The exception that the command-line tools report as one sentence, without a traceback."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the user gave us is wrong: a path, a file's content, a flag, a port.

    The text is one sentence that names the thing and says what to do about it.
    """


def run_resumable(work: Callable[[], None]) -> int:
    """Runs a command that continues where it stopped when it is run again; returns the exit code."""
    try:
        work()
    except (InputError, OSError) as error:  # OSError: no permission, disk full, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 0
