"""The one exception that the command-line tools turn into a message instead of a traceback, and how they do."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the user gave us is wrong: a path, a file's content, a flag, a port.

    The text is one sentence that names the thing and says what to do about it.
    """


def run_resumable(work: Callable[[], None]) -> int:
    """The exit code of a command that goes on where it was when it is run again."""
    try:
        work()
    except (InputError, OSError) as error:  # OSError: no permission, disk full, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 0
