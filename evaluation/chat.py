"""Asks a model questions at the terminal, and shows how it thinks, searches, reads and answers.

    search-r1 chat runs/demo-…                          the model that a demo run trained
    search-r1 chat --model DIR --engine http://127.0.0.1:30000 --search local:http://127.0.0.1:8000
    search-r1 chat … --ask "What is the capital of Kenya?"

Each question starts a new conversation, with the prompt and the rollout of training. Questions may also come through a
pipe, one per line. /fork returns to a search of the last answer, gives the model something else to read, and continues
from there. Ctrl-C stops an answer; /help lists the commands; /exit or Ctrl-D ends the program.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.fork import ForkError, Replacement, fork
from evaluation.options import add_options, command_parser, running_plugin
from evaluation.plugin import config_of, find_slime, prepare_process, sample_of_row, sampling_params
from evaluation.questions import closed_book_prompt
from evaluation.records import record_of, rollout_of
from evaluation.terminal import exit_code
from search_rollout.engine.sglang_reply import EngineError
from search_rollout.protocols.prompts import PromptMode, prompt_row
from search_rollout.runtime import Runtime, engine_url
from search_rollout.samples.fields import write_rollout
from search_rollout.search.passage import Passage
from search_rollout.trajectory import Segment

HELP = """\
Type a question and press Enter. The model answers it with the prompt of training; it does not remember earlier ones.
  /fork TURN search QUERY          return to that turn, search for QUERY instead, and continue from there
  /fork TURN read TITLE | TEXT     return to that turn and let the model read this passage instead
  /help                            show this text
  /exit                            end the program, like Ctrl-D
Ctrl-C stops an answer that takes too long."""
COLOURS = {
    "think": "2",
    "search": "36",
    "tool_call": "36",
    "information": "33",
    "tool_response": "33",
    "answer": "1;32",
}
_PART = re.compile(rf"<({'|'.join(COLOURS)})>.*?(?:</\1>|\Z)", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # documents must not control the terminal


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("chat", __doc__)
    add_options(parser)
    parser.add_argument(
        "--mode", choices=["xml", "chat"], default="xml", help="how the model was trained to search (xml)"
    )
    parser.add_argument("--ask", metavar="QUESTION", help="ask this question only")
    options = parser.parse_args(argv)
    prepare_process()
    return exit_code(lambda: chat(options))


def chat(options: argparse.Namespace) -> int:
    """Runs the chat. The exit code is 1 if the engine failed on the last question."""
    print("loading the tokenizer", file=sys.stderr, flush=True)
    find_slime()
    failed = False
    with tempfile.TemporaryDirectory(prefix="evaluation-chat-") as folder:
        with running_plugin(options, options.model, options.mode, Path(folder) / "engine.log") as args:
            with asyncio.Runner() as runner:
                asker = runner.run(_open(args, closed_book=options.search == "none"))
                try:
                    for question in [options.ask] if options.ask is not None else _questions():
                        try:
                            runner.run(asker.fork(question) if is_fork(question) else asker.ask(question))
                            failed = False
                        except (EngineError, ForkError) as error:
                            print(f"error: {error}", file=sys.stderr)
                            failed = True
                        except KeyboardInterrupt:
                            if options.ask is not None or not sys.stdin.isatty():
                                raise
                            print("\n(interrupted)")
                finally:
                    runner.run(asker.runtime.close())
    return 1 if failed else 0


def _questions() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  (input() then has a history and can be edited)

    print("Ask a question; /help lists the commands, /exit ends the program.")
    while True:
        try:
            question = input("\nquestion> ").strip()
        except EOFError:
            print()
            return
        if question in ("/exit", "/quit"):
            return
        if question.startswith("/") and not is_fork(question):
            print(HELP if question == "/help" else f"{question.split()[0]} is not a command; /help lists them.")
        elif question:
            yield question


def is_fork(line: str) -> bool:
    return line.split(maxsplit=1)[:1] == ["/fork"]


async def _open(args: argparse.Namespace, *, closed_book: bool) -> "Asker":
    from slime.rollout.sglang_rollout import GenerateState

    return Asker(args, Runtime(engine_url(args), config_of(args), GenerateState(args)), closed_book)


class Asker:
    """Asks questions one after another and prints each turn as it arrives."""

    def __init__(self, args: argparse.Namespace, runtime: Runtime, closed_book: bool) -> None:
        self.runtime = runtime
        self._args = args
        self._closed_book = closed_book
        self._last: dict[str, Any] | None = None  # the last Sample, as it would be recorded
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    async def ask(self, question: str) -> None:
        """Prints the trajectory, and its answer or why there is none. Raises EngineError."""
        import generate_with_search

        params, sample = sampling_params(self._args), self._sample(question)
        rollout = await self.runtime.begin(self._args, sample, params, True)
        print(f"question: {question}")
        stop = await generate_with_search.roll_out(self.runtime, rollout, params, self._show)
        write_rollout(sample, rollout.trajectory, rollout.record(stop), self.runtime.decode)
        self._keep(record_of(sample))

    async def fork(self, line: str) -> None:
        """Continues from a search of the last answer (see HELP). Raises ForkError and EngineError."""
        turn, replacements = self._read_fork(line)
        assert self._last is not None
        params = sampling_params(self._args)
        print(f"fork at turn {turn}")
        self._keep(await fork(self.runtime, self._args, self._last, turn, replacements, params, self._show))

    def _read_fork(self, line: str) -> tuple[int, list[Replacement]]:
        """Parses a /fork line into turn and replacements, one for every query of the turn. Raises ForkError."""
        match line.split(maxsplit=3):
            case [_, turn, "search", query] if turn.isdecimal():
                replacement = Replacement(query)
            case [_, turn, "read", passage] if turn.isdecimal() and "|" in passage:
                title, _, text = passage.partition("|")
                replacement = Replacement("", [Passage(title.strip(), text.strip())])
            case _:
                raise ForkError("/fork TURN search QUERY, or /fork TURN read TITLE | TEXT")
        if self._last is None:
            raise ForkError("Ask a question first; /fork goes back to one of its searches.")
        record = rollout_of(self._last)
        turns = record.turns if record else []
        asked = turns[int(turn) - 1].queries if 1 <= int(turn) <= len(turns) else []
        return int(turn), [Replacement(replacement.query or query, replacement.passages) for query in asked]

    def _keep(self, fields: dict[str, Any]) -> None:
        """Prints the answer, or why there is none, and keeps the rollout for the next /fork."""
        self._last = fields
        record = rollout_of(fields)
        assert record is not None  # ours
        answer = f"answer: {_printable(record.answer)}" if record.answer else f"no answer: {record.stop.value}"
        print(answer, flush=True)

    def _sample(self, question: str) -> Any:
        has_template = bool(self.runtime.tokenizer.chat_template)
        mode: PromptMode = "chat" if self._args.llm_api_mode == "chat" else "generate" if has_template else "text"
        row: Mapping[str, Any] = prompt_row(question, [], "", mode=mode, extra={})
        if self._closed_book:
            row = {**row, "prompt": closed_book_prompt(question, as_text=not has_template)}
        return sample_of_row(self._args, self.runtime.tokenizer, row)

    def _show(self, segment: Segment) -> None:
        print(paint(_printable(segment.text).strip(), self._coloured), flush=True)


def paint(text: str, coloured: bool) -> str:
    """A turn or observation with thoughts dimmed, and searches, documents and answers each in their own colour."""
    if not coloured:
        return text
    return _PART.sub(lambda part: f"\x1b[{COLOURS[part[1]]}m{part[0]}\x1b[0m", text)


def _printable(text: str) -> str:
    return _CONTROLS.sub("", text)


if __name__ == "__main__":
    sys.exit(main())
