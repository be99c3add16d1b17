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
import dataclasses
import itertools
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.exam_figures import examine, tables
from evaluation.options import add_options, add_question_options, command_parser, running_plugin, search_settings
from evaluation.passage_server import Find, passage_server
from evaluation.plugin import config_of, prepare_process
from evaluation.questions import Question, closed_book
from evaluation.records import Records, read_json, read_records, write_json
from evaluation.run import INTERRUPTED, ask_all, chosen_questions, complaints, settings_of
from evaluation.terminal import exit_code, typed
from qa_em_format import any_holds_gold
from search_rollout.runtime import local_retrievers, make_searcher
from search_rollout.search.passage import SearchResult

CLOSED_BOOK, GOLD = "closed book", "gold"  # arms
GOLD_PASSAGES = "gold_passages"  # in a row's metadata


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("exam", __doc__)
    add_options(parser)
    add_question_options(parser, "exam", per_set=64, seed="questions, random passages and bootstrap")
    options = parser.parse_args(argv)
    if not options.search.startswith("local:"):
        parser.error("--search must be local:URL, the retriever that the exam replaces")
    prepare_process()
    return exit_code(lambda: run(options), interrupted=INTERRUPTED)


def run(options: argparse.Namespace) -> int:
    """Asks the unfinished questions of every arm, then reports on all arms."""
    questions, mode = chosen_questions(options)
    with running_plugin(options, options.model, mode, options.output / "engine.log") as plugin:
        settings = settings_of(options, plugin, questions, mode)
        found = found_passages(options.output / "passages.json", questions, plugin)
        arms = arms_for(questions, found, options.seed)
        for number, (name, find) in enumerate(arms.items(), start=1):
            with Records.open(arm_folder(options.output, name), {**settings, "arm": name}) as records:
                title = f"arm {number} of {len(arms)}, {name}"
                asyncio.run(ask_arm(name, find, questions, records, plugin, options.concurrency, title))
    if GOLD not in arms:
        print(f"The gold arm is left out: not every question has {GOLD_PASSAGES} in its row's metadata.")
    return report(options.output, settings, arms, options.seed)


def arm_folder(output: Path, name: str) -> Path:
    return output / name.replace(" ", "-")


def arms_for(questions: Sequence[Question], found: Mapping[str, Sequence[str]], seed: int) -> dict[str, Find | None]:
    """Arm → what replaces the retriever; `gold` only if each question has gold passages.

    `found`: question id → what the retriever found.
    """
    gold = {question.id: gold_passages(question) for question in questions}
    arms: dict[str, Find | None] = {
        "retriever": None,
        "nothing": lambda *_: [],
        "random": random_passages(found, seed),
        CLOSED_BOOK: None,
    }
    if all(gold.values()):
        arms[GOLD] = lambda question, query, most: gold[question.id][:most]
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
        lots = random.Random(f"{seed} {question.id} {query}").sample(pool, len(pool))
        own = set(found[question.id])
        fitting = (text for text in lots if text not in own and not any_holds_gold([text], question.golds))
        return list(itertools.islice(fitting, most))

    return find


def found_passages(file: Path, questions: Sequence[Question], plugin: argparse.Namespace) -> dict[str, list[str]]:
    """The passages that the retriever finds for each question's text, cached in `file`. Raises ValueError."""
    kept: dict[str, list[str]] = read_json(file)
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
    config = config_of(plugin)
    searcher = make_searcher(config, local_retrievers(config))
    try:
        return await asyncio.gather(*map(searcher.search, queries))
    finally:
        await searcher.close()


async def ask_arm(
    name: str,
    find: Find | None,
    questions: Sequence[Question],
    records: Records,
    plugin: argparse.Namespace,
    concurrency: int,
    title: str,
) -> None:
    """Asks the unfinished questions of an arm; `find` replaces the retriever."""
    if name == CLOSED_BOOK:
        questions = list(map(closed_book, questions))
        plugin = _changed(plugin, **search_settings("none"), llm_api_mode="generate")
    if find is None:
        await ask_all(questions, records, concurrency, lambda *_: plugin, title=title)
        return
    async with passage_server(find) as url_of:
        slots: dict[int, argparse.Namespace] = {}  # each slot keeps its args, and so its connections

        def args_of(question: Question, slot: int) -> argparse.Namespace:
            url = url_of(slot, question)
            return slots.setdefault(slot, _changed(plugin, retrieval_server_url=url, search_cache=""))

        await ask_all(questions, records, concurrency, args_of, title=title)


def _changed(plugin: argparse.Namespace, **settings: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(plugin), **settings})


def report(output: Path, settings: Mapping[str, Any], arms: Iterable[str], seed: int) -> int:
    """The tables on the terminal and results.json; the exit code."""
    records = {name: read_records(arm_folder(output, name)) for name in arms}
    result = examine(records, seed)
    write_json(output / "results.json", {"settings": settings, **dataclasses.asdict(result)})
    print("\n".join(["", *tables(result), ""]))
    print(f"browse an arm with: {typed('view', arm_folder(output, 'retriever'))}", flush=True)
    return complaints([record["scores"] for arm in records.values() for record in arm], "samples of all arms")


if __name__ == "__main__":
    sys.exit(main())
