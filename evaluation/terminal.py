"""Terminal output of the commands: progress that is never silent for long, and commands ready to type."""

import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

REDRAW_S = 0.5  # on a terminal, where one line is rewritten
LINE_EVERY_S = 30.0  # elsewhere: in a pipe, a file, a job's log


class Progress:
    """`with Progress("evaluation", total=128, unit="questions") as progress: progress.update()`.

    Shows title, count, elapsed and remaining time on stderr: on a terminal in one line that is rewritten, elsewhere as
    a new line every LINE_EVERY_S, even without progress. Without `total` it shows only the time.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "", done: int = 0) -> None:
        """`done` of `total` were finished before this process started."""
        self._title = title
        self._total = total
        self._unit = unit
        self.done = self._done_before = done
        self._note = ""
        self._began = time.monotonic()
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_repeatedly, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._is_terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def update(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more; `note` replaces the end of the line."""
        self.done += count
        self._note = note or self._note

    def line(self) -> str:
        """The current line: "evaluation: 37 of 128 questions, 0:42, about 1:43 left"."""
        used = time.monotonic() - self._began
        if self._total is None:
            return ", ".join(filter(None, (f"{self._title} … {clock(used)}", self._note)))
        parts = [f"{self._title}: {self.done:,} of {self._total:,} {self._unit}".rstrip(), clock(used)]
        counted = self.done - self._done_before
        # Questions run concurrently, so the first few say little about the rest.
        if counted * 10 >= self._total - self._done_before and self.done < self._total:
            parts.append(f"about {clock(used / counted * (self._total - self.done))} left")
        return ", ".join(filter(None, (*parts, self._note)))

    def _show_repeatedly(self) -> None:
        while not self._ended.wait(REDRAW_S if self._is_terminal else LINE_EVERY_S):
            if self._is_terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K{self.line()[:width]}", end="", file=self._stream, flush=True)
            else:
                print(self.line(), file=self._stream, flush=True)


def exit_code(run: Callable[[], int], *, failure: int = 1, interrupted: str = "interrupted") -> int:
    """What `run` returns; `failure` after an error, which becomes one sentence on stderr; 130 after Ctrl-C."""
    try:
        return run()
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return failure
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130


def clock(seconds: float) -> str:
    """Minutes and seconds, as in "12:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def typed(*words: object) -> str:
    """A command of `search-r1` as it must be typed in this folder: ".venv/bin/search-r1 chat runs/demo-1"."""
    script = Path(sys.executable).with_name("search-r1")
    if shutil.which("search-r1") == str(script):
        program = "search-r1"
    elif script.is_file():
        program = shlex.quote(short(script))
    else:  # a checkout on PYTHONPATH that was never installed
        program = f"{shlex.quote(short(Path(sys.executable)))} -m search_r1_cli"
    return " ".join([program, shlex.join(short(word) if isinstance(word, Path) else str(word) for word in words)])


def short(path: Path) -> str:
    """The path relative to the current folder if it lies below it, else the absolute path."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
