"""Does the model search, and does searching help? This command asks the same questions in five ways.

    search-r1 exam --model DIR --engine http://127.0.0.1:30000 --search local:http://127.0.0.1:8000 \\
        --data test.parquet --output runs/exam-step100

    search-r1 exam runs/demo-…                          a demo run's model on its own held-out questions

    retriever     the real retriever, as in `search-r1 evaluate`
    nothing       every search succeeds and finds nothing
    random        every search finds passages of other questions, none with a gold answer
    closed book   no search, and a prompt that asks for an answer from memory
    gold          every search finds the passages that answer the question (`gold_passages` in the row's metadata: a
                  list of texts, the title on the first line); left out unless every row has them

Each arm is an ordinary evaluation in its own folder below --output, for `search-r1 view` and `compare`. Run the same
command again to continue an interrupted exam. At the end it prints the arms side by side and what their differences
mean.
"""

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.exam_figures import examine, tables
from evaluation.options import absolute, add_options, running_plugin, search_settings
from evaluation.passage_server import Find, PassageServer
from evaluation.plugin import find_slime, prepare_process
from evaluation.questions import Question, choose, closed_book_row, read_questions
from evaluation.records import Records, read_records, write_json
from evaluation.run import Asked, ask_all, count_or_all, mode_for, settings_of, with_rows
from evaluation.terminal import typed
from qa_em_format import any_holds_gold
from search_rollout.config import load_config
from search_rollout.runtime import local_retrievers, make_searcher
from search_rollout.search.passage import SearchResult

GOLD_PASSAGES = "gold_passages"  # in a row's metadata


class Arm(NamedTuple):
    """One way of asking; `find` replaces the retriever unless it is None."""

    name: str
    find: Find | None = None
    closed_book: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the exam; returns the exit code."""
    options = parse_args(argv)
    prepare_process()
    try:
        return run(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="search-r1 exam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE", help="parquet or jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder of this exam")
    parser.add_argument(
        "--mode", choices=["xml", "chat"], help="how the model searches (default: as the data was prepared)"
    )
    parser.add_argument("--per_set", type=count_or_all, default=64, help="questions of each set, or `all` (64)")
    parser.add_argument("--limit", type=int, help="maximum number of questions, for a first look")
    parser.add_argument("--seed", type=int, default=0, help="seed of questions, random passages and bootstrap (0)")
    parser.add_argument("--concurrency", type=int, default=64, help="questions asked at the same time (64)")
    options = parser.parse_args(argv)
    if options.concurrency < 1 or (options.limit is not None and options.limit < 1):
        parser.error("--concurrency and --limit must be 1 or more")
    if not options.search.startswith("local:"):
        parser.error("--search must be local:URL, the retriever that the exam replaces")
    return options


def run(options: argparse.Namespace) -> int:
    """Asks the unfinished questions of every arm, then reports on all arms."""
    print("loading the questions and the tokenizer", flush=True)
    find_slime()
    questions = choose(read_questions(options.data), options.per_set, options.seed)[: options.limit]
    mode = mode_for(options.mode, questions)
    options.output.mkdir(parents=True, exist_ok=True)
    with running_plugin(options, absolute(options.model), mode, options.output / "engine.log") as plugin:
        settings = settings_of(options, plugin, questions, mode)
        found = found_passages(options.output / "passages.json", questions, plugin)
        arms = arms_for(questions, found, options.seed)
        for number, arm in enumerate(arms, start=1):
            title = f"arm {number} of {len(arms)}, {arm.name}"
            with Records(arm_folder(options.output, arm.name), {**settings, "arm": arm.name}) as records:
                with asyncio.Runner() as runner:
                    runner.run(ask_arm(arm, plugin, questions, records, options.concurrency, title))
    if arms[-1].name != "gold":
        print(f"The gold arm is left out: not every question has {GOLD_PASSAGES} in its row's metadata.")
    return report(options.output, settings, arms, options.seed)


def arm_folder(output: Path, name: str) -> Path:
    """The folder of an arm's trajectories."""
    return output / name.replace(" ", "-")


def arms_for(questions: Sequence[Question], found: Mapping[str, Sequence[str]], seed: int) -> list[Arm]:
    """The five arms; four if a question has no gold passages. `found`: question id → what the retriever found."""
    gold = {question.id: gold_passages(question) for question in questions}
    arms = [
        Arm("retriever"),
        Arm("nothing", lambda *_: []),
        Arm("random", random_passages(found, seed)),
        Arm("closed book", closed_book=True),
    ]
    if all(gold.values()):
        arms.append(Arm("gold", lambda question, query, most: gold[question.id][:most]))
    return arms


def gold_passages(question: Question) -> list[str]:
    """The passages in the question's row that answer it. Raises ValueError if they are not texts."""
    passages = (question.row.get("metadata") or {}).get(GOLD_PASSAGES)
    if passages is None:
        return []
    if not isinstance(passages, list) or not all(isinstance(text, str) for text in passages):
        raise ValueError(f"{GOLD_PASSAGES} of the question {question.text!r} is not a list of texts.")
    return passages


def random_passages(found: Mapping[str, Sequence[str]], seed: int) -> Find:
    """Draws from the passages found for other questions; a repeated query of a question gets the same ones."""
    pool = sorted({passage for passages in found.values() for passage in passages})

    def find(question: Question, query: str, most: int) -> list[str]:
        drawn: list[str] = []
        lots = random.Random(f"{seed} {question.id} {query}").sample(pool, len(pool))
        own = set(found[question.id])
        for passage in lots:
            if len(drawn) == most:
                break
            if passage not in own and not any_holds_gold([passage], question.golds):
                drawn.append(passage)
        return drawn

    return find


def found_passages(file: Path, questions: Sequence[Question], plugin: argparse.Namespace) -> dict[str, list[str]]:
    """The passages that the retriever finds for each question's text, cached in `file`. Raises ValueError."""
    kept: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.keys() >= {question.id for question in questions}:
        return kept

    results = asyncio.run(_search_each([question.text for question in questions], plugin))
    if failed := next((result.error for result in results if result.error), None):
        raise ValueError(f"The retriever failed: {failed}.")
    found = {
        question.id: [f'"{passage.title}"\n{passage.text}' for passage in result.passages]
        for question, result in zip(questions, results, strict=True)
    }
    if not any(found.values()):
        raise ValueError("The retriever finds nothing for any question; is it the right corpus?")
    write_json(file, found)
    return found


async def _search_each(queries: Sequence[str], plugin: argparse.Namespace) -> list[SearchResult]:
    import generate_with_search

    config = load_config(generate_with_search.SEARCH_R1_CONFIGS, os.environ, plugin)
    searcher = make_searcher(config, local_retrievers(config))
    try:
        return await asyncio.gather(*map(searcher.search, queries))
    finally:
        await searcher.close()


async def ask_arm(
    arm: Arm,
    plugin: argparse.Namespace,
    questions: Sequence[Question],
    records: Records,
    concurrency: int,
    title: str,
) -> None:
    """Asks an arm's unfinished questions."""
    async with AsyncExitStack() as stack:
        if arm.find:
            asked = served(plugin, await stack.enter_async_context(PassageServer(arm.find)))
        else:
            asked = with_rows(_without_search(plugin), closed_book_row) if arm.closed_book else with_rows(plugin)
        await ask_all(questions, records, concurrency, asked, title=title)


def served(plugin: argparse.Namespace, server: PassageServer) -> Asked:
    """Asks the question's own row with another retriever. Each slot keeps its args, and so its connections."""
    args: dict[int, argparse.Namespace] = {}

    def asked(question: Question, slot: int) -> tuple[argparse.Namespace, Mapping[str, Any]]:
        url = server.url(slot, question)
        if slot not in args:
            args[slot] = _changed(plugin, retrieval_server_url=url, search_cache="")
        return args[slot], question.row

    return asked


def _without_search(plugin: argparse.Namespace) -> argparse.Namespace:
    return _changed(plugin, **search_settings("none"), llm_api_mode="generate")


def _changed(plugin: argparse.Namespace, **settings: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(plugin), **settings})


def report(output: Path, settings: Mapping[str, Any], arms: Sequence[Arm], seed: int) -> int:
    """The tables on the terminal and results.json; the exit code."""
    records = {arm.name: read_records(arm_folder(output, arm.name)) for arm in arms}
    result = examine(records, seed)
    write_json(output / "results.json", {"settings": settings, **result.as_json()})
    print("\n".join(["", *tables(result), ""]))
    print(f"browse an arm with: {typed('view', arm_folder(output, 'retriever'))}", flush=True)
    discarded = sum(int(record["scores"]["gave_up"]) for arm in records.values() for record in arm)
    failed = sum(int(record["scores"]["failed_searches"]) for record in records["retriever"])
    if failed:
        print(f"warning: {failed} retriever searches failed, which lowers its figures", file=sys.stderr)
    if discarded:
        print(
            f"error: {discarded} questions were discarded and count as wrong; the log above says why. "
            "Run the same command again to retry them.",
            file=sys.stderr,
        )
    return 1 if discarded else 0


if __name__ == "__main__":
    sys.exit(main())
