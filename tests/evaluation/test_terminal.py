"""Progress on a terminal and elsewhere."""

import io
import re
import time
from collections.abc import Callable

import pytest

from evaluation import terminal
from evaluation.terminal import Progress, clock

WAIT_S = 10.0


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def await_text(stream: Stream, found: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + WAIT_S
    while not found(stream.getvalue()):
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)
    return stream.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then_even_if_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream(is_terminal=False)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.05)
    with Progress("starting the retriever"):
        shown = await_text(stream, lambda text: text.count("\n") >= 2)
    assert re.fullmatch(r"(starting the retriever … 0:00\n)+", shown)
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_one_line_is_rewritten_and_removed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(is_terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(terminal, "REDRAW_S", 0.01)
    monkeypatch.setenv("COLUMNS", "30")
    with Progress("evaluation", 128, "questions") as progress:
        progress.update(37, note="exact match 0.453")
        shown = await_text(stream, lambda text: "37 of 128" in text)
    assert "\n" not in shown and all(len(line) < 30 for line in shown.split("\r\x1b[K"))
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_line_has_count_time_used_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    progress = Progress("evaluation", 1280, "questions", done=280)
    assert progress.line() == "evaluation: 280 of 1,280 questions, 0:00"
    now = 60.0
    progress.update(99)
    assert progress.line() == "evaluation: 379 of 1,280 questions, 1:00"  # too few to tell how long the rest takes
    progress.update(151)
    now = 75.0  # 250 in 75 s: 750 more take 225 s
    assert progress.line() == "evaluation: 530 of 1,280 questions, 1:15, about 3:45 left"
    progress.update(750, note="exact match 0.500")
    assert progress.line() == "evaluation: 1,280 of 1,280 questions, 1:15, exact match 0.500"


def test_a_clock_counts_minutes_on() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 60, 3601)] == ["0:00", "0:59", "1:00", "60:01"]
