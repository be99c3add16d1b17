"""Ask a model questions at the terminal, and watch it think, search, read and answer.

    python -m evaluation.chat --model DIR --engine http://127.0.0.1:30000 --search local:http://127.0.0.1:8000
    python -m evaluation.chat … --ask "What is the capital of Kenya?"

Every question starts afresh, with the prompt and the rollout of training. Questions may also come through a pipe, one a
line. Ctrl-C ends an answer, Ctrl-D the program.
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

from evaluation.options import absolute, add_options, running_plugin
from evaluation.plugin import find_slime, prepare_process, sample_of_row, sampling_params
from evaluation.questions import closed_book_prompt
from search_rollout.engine.sglang_reply import EngineError
from search_rollout.protocols.prompts import PromptMode, prompt_row
from search_rollout.trajectory import Segment

COLOURS = {
    "think": "2",
    "search": "36",
    "tool_call": "36",
    "information": "33",
    "tool_response": "33",
    "answer": "1;32",
}
_PART = re.compile(rf"<({'|'.join(COLOURS)})>.*?(?:</\1>|\Z)", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a document must not write to the terminal itself


def main(argv: Sequence[str] | None = None) -> int:
    """Asks until there are no more questions; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--mode", choices=["xml", "chat"], default="xml", help="how the model was trained to search (xml)"
    )
    parser.add_argument("--ask", metavar="QUESTION", help="this one question only")
    options = parser.parse_args(argv)
    prepare_process()
    try:
        return chat(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def chat(options: argparse.Namespace) -> int:
    """The exit code is 1 if the last question met trouble with the engine."""
    find_slime()
    failed = False
    mode = "xml" if options.search == "none" else options.mode
    with tempfile.TemporaryDirectory(prefix="evaluation-chat-") as folder:
        with running_plugin(options, absolute(options.model), mode, Path(folder) / "engine.log") as args:
            with asyncio.Runner() as runner:
                asker = runner.run(_open(args, closed_book=options.search == "none"))
                try:
                    for question in [options.ask] if options.ask is not None else _questions():
                        try:
                            runner.run(asker.ask(question))
                            failed = False
                        except EngineError as error:
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
    """Questions from the terminal or a pipe, until its end."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  (input() then has a history and can be edited)

    while True:
        try:
            question = input("\nquestion> ").strip()
        except EOFError:
            print()
            return
        if question:
            yield question


async def _open(args: argparse.Namespace, *, closed_book: bool) -> "Asker":
    from slime.rollout.sglang_rollout import GenerateState

    import generate_with_search
    from search_rollout.config import load_config
    from search_rollout.runtime import Runtime, engine_url

    config = load_config(generate_with_search.SEARCH_R1_CONFIGS, os.environ, args)
    return Asker(args, Runtime(engine_url(args), config, GenerateState(args)), GenerateState(args), closed_book)


class Asker:
    """Asks one question after the other and prints each turn as it comes."""

    def __init__(self, args: argparse.Namespace, runtime: Any, state: Any, closed_book: bool) -> None:
        self.runtime = runtime
        self._args = args
        self._state = state
        self._closed_book = closed_book
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    async def ask(self, question: str) -> None:
        """Prints the trajectory, and its answer or why there is none. Raises EngineError."""
        import generate_with_search

        params = sampling_params(self._args)
        rollout = await self.runtime.begin(self._args, self._sample(question), params, True)
        print(f"question: {question}")
        stop = await generate_with_search.roll_out(self.runtime, rollout, params, self._show)
        answer = rollout.record(stop).answer
        print(f"answer: {_printable(answer)}" if answer else f"no answer: {stop.value}", flush=True)

    def _sample(self, question: str) -> Any:
        has_template = bool(self._state.tokenizer.chat_template)
        mode: PromptMode = "chat" if self._args.llm_api_mode == "chat" else "generate" if has_template else "text"
        row: Mapping[str, Any] = prompt_row(question, [], "", mode=mode, extra={})
        if self._closed_book:
            row = {**row, "prompt": closed_book_prompt(question, as_text=not has_template)}
        return sample_of_row(self._args, self._state.tokenizer, row)

    def _show(self, segment: Segment) -> None:
        print(paint(_printable(segment.text).strip(), self._coloured), flush=True)


def paint(text: str, coloured: bool) -> str:
    """A turn or observation with thoughts dim, searches, documents and answers in colours of their own."""
    if not coloured:
        return text
    return _PART.sub(lambda part: f"\x1b[{COLOURS[part[1]]}m{part[0]}\x1b[0m", text)


def _printable(text: str) -> str:
    return _CONTROLS.sub("", text)


if __name__ == "__main__":
    sys.exit(main())
