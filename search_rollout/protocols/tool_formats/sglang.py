"""Every family that SGLang reads, by SGLang's own detectors: `tool_call_format: sglang:NAME`, NAME as in SGLang's docs.

The detectors run in a child process with a time limit, since some of their patterns take exponential time on hostile
text: a turn that takes too long counts as one unreadable call. A child that hangs all the same is killed and restarted.

    python -m search_rollout.protocols.tool_formats.sglang NAME     the child: one JSON line in, one out
"""

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from search_rollout.protocols.tool_formats.base import ParsedTurn, ToolCall, ToolFormat, call_with

PREFIX = "sglang:"
START_S = 180.0  # importing SGLang, and torch with it
TURN_S = 2.0  # it blocks all rollouts of the process
_ROOT = Path(__file__).resolve().parents[3]


class SGLangFormat(ToolFormat):
    """What one of SGLang's detectors reads. Raises ValueError if SGLang is not installed or has no such detector."""

    name: ClassVar[str] = "sglang"

    def __init__(self, detector: str, tools: Sequence[Mapping[str, Any]] = (), worker: "_Worker | None" = None) -> None:
        self._tools = [dict(tool) for tool in tools]
        self._worker = worker or _Worker(detector)

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> ToolFormat:
        return SGLangFormat(self._worker.detector, tools, self._worker)

    def split(self, text: str) -> ParsedTurn:
        """See `ToolFormat`; takes at most `TURN_S` seconds. What SGLang takes for calls but cannot read is one call."""
        answer = self._worker.ask({"text": text, "tools": self._tools})
        if answer is None:
            return ParsedTurn("", (ToolCall(text),))
        calls = tuple(call_with(text, name, arguments) for name, arguments in answer["calls"])
        if not calls and answer["called"]:
            return ParsedTurn("", (ToolCall(text),))
        return ParsedTurn(str(answer["content"] or "").strip(), calls)


class _Worker:
    """The child process: started when it is first needed, killed when it fails or with its parent."""

    def __init__(self, detector: str) -> None:
        if importlib.util.find_spec("sglang") is None:
            raise ValueError(
                f"tool_call_format {PREFIX}{detector} needs SGLang in the Python that runs the rollouts, as in slime's "
                "image: install sglang there, or name another format."
            )
        self.detector = detector
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self._end)
        self._start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The child's answer; None if it has none in time."""
        try:
            child = self._child or self._start()
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            return json.loads(_line(child.stdout, TURN_S))
        except (OSError, ValueError):
            self._end()
            return None

    def _start(self) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        self._child = child = subprocess.Popen(
            [sys.executable, "-m", __name__, self.detector],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "SGLANG_FORWARD_UNKNOWN_TOOLS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )
        assert child.stdout is not None
        try:
            trouble = json.loads(_line(child.stdout, START_S))
        except (OSError, ValueError) as error:
            self._end()
            raise ValueError(f"SGLang's detectors could not be started within {START_S:.0f} s: {error}") from error
        if trouble:
            self._end()
            raise ValueError(f"tool_call_format {PREFIX}{self.detector}: {trouble}")
        return child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _line(pipe: IO[bytes], timeout_s: float) -> bytes:
    """One line from a pipe. Raises ValueError if it is not there in time, or the other end has closed it."""
    found = b""
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not ready.select(timeout_s):
                raise ValueError("no answer")
            piece = os.read(pipe.fileno(), 2**16)
            if not piece:
                raise ValueError("the process ended")
            found += piece
    return found


def main(detector: str) -> None:
    """Answers one request per line on stdin, until it is closed."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed by imports
    try:
        from sglang.srt.entrypoints.openai.protocol import Tool
        from sglang.srt.function_call.function_call_parser import FunctionCallParser

        known = FunctionCallParser.ToolCallParserEnum
        trouble = "" if detector in known else f"SGLang has no such detector; it has {', '.join(sorted(known))}."
    except Exception as error:  # whatever a broken installation raises
        trouble = f"SGLang cannot be imported: {' '.join(str(error).split())[:300]}"
    print(json.dumps(trouble), file=out, flush=True)
    if trouble:
        return
    signal.signal(signal.SIGALRM, _too_late)
    for line in sys.stdin:
        request = json.loads(line)
        parser = FunctionCallParser([Tool(**tool) for tool in request["tools"]], detector)
        content, calls = _in_time(parser.parse_non_stream, request["text"]) or ("", [])
        answer = {
            "content": content,
            "calls": [(call.name, call.parameters) for call in calls],
            "called": _in_time(parser.has_tool_call, request["text"]) is not False,
        }
        print(json.dumps(answer), file=out, flush=True)


class _TooLate(BaseException):
    """No Exception: the detectors catch those."""


def _in_time(work: Callable[[str], Any], text: str) -> Any:
    """What `work` makes of the text; None if it raises, or takes longer than a part of TURN_S."""
    try:
        signal.setitimer(signal.ITIMER_REAL, TURN_S / 4)
        return work(text)
    except (Exception, _TooLate):
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_late(*_: Any) -> None:
    raise _TooLate


if __name__ == "__main__":
    main(sys.argv[1])
