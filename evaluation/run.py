"""Evaluates a model on question sets, with the rollout and the reward of training.

    search-r1 evaluate --model DIR --engine http://127.0.0.1:30000 --search local:http://127.0.0.1:8000 \\
        --data test.parquet --output runs/eval-step100

    search-r1 evaluate runs/demo-…                      a demo run's model on its own held-out questions

By default it asks 500 questions of each set, always the same ones, greedily. The output folder gets trajectories.jsonl
(one line per finished sample), results.json and results.png. Run the same command again to continue an interrupted
evaluation. --samples 8 --temperature 1 asks each question eight times and reports pass@k and majority@n. --search none
is the closed-book control: the same questions, answered from memory and scored the same way. A slime checkpoint
(torch_dist) is converted first and needs an engine that is started on the result:

    search-r1 evaluate --megatron_checkpoint /root/ckpt --slime_dir /root/slime --engine sglang \\
        --model /root/Qwen2.5-3B-Instruct …
"""

import argparse
import asyncio
import dataclasses
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.corpus_audit import audit_lines
from evaluation.megatron import convert
from evaluation.metrics import scores_of, summarise, together
from evaluation.options import add_options, add_question_options, command_parser, running_plugin
from evaluation.plugin import ask, config_of, find_slime, prepare_process, sample_of_row, sampling_params
from evaluation.questions import Question, choose, closed_book, mode_of, read_questions
from evaluation.records import Records, record_of, write_json
from evaluation.report import draw, rank, tables
from evaluation.terminal import Progress, exit_code, short, typed
from search_rollout.arguments import whole_number

SECRETS = {"google_api_key"}
ADDRESSES = {"retrieval_server_url"}  # may change between runs that use the same corpus
INTERRUPTED = "interrupted; run the same command again to continue"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("evaluate", __doc__)
    add_options(parser)
    add_question_options(parser, "evaluation", per_set=500, seed="the choice of questions and of the bootstrap")
    parser.add_argument("--samples", type=whole_number(1), default=1, help="how often each question is asked (1)")
    parser.add_argument("--megatron_checkpoint", type=Path, help="folder that slime's --save wrote; converted first")
    parser.add_argument("--slime_dir", type=Path, help="slime's repository, for its converter")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where converted checkpoints are kept")
    options = parser.parse_args(argv)
    if options.samples > 1 and options.temperature == 0:
        parser.error("--samples needs a --temperature above 0, such as 1: greedy samples of a question are identical")
    if options.megatron_checkpoint and (not options.slime_dir or options.engine not in ("sglang", "demo")):
        parser.error("--megatron_checkpoint needs --slime_dir and --engine sglang, which starts on the converted model")
    prepare_process()
    return exit_code(lambda: run(options), interrupted=INTERRUPTED)


def run(options: argparse.Namespace) -> int:
    """Asks the unfinished questions, then reports on all of them."""
    questions, mode = chosen_questions(options)
    model = options.model
    if options.megatron_checkpoint:
        model = str(convert(options.megatron_checkpoint, options.slime_dir, Path(model), options.cache / "converted"))
    with running_plugin(options, model, mode, options.output / "engine.log") as plugin:
        several = {"samples": options.samples} if options.samples > 1 else {}
        settings = settings_of(options, plugin, questions, mode) | several
        with Records.open(options.output, settings) as records:
            asked = list(map(closed_book, questions)) if options.search == "none" else questions
            asyncio.run(ask_all(asked, records, options.concurrency, lambda *_: plugin, options.samples))
            return report(options, settings, questions, records)


def chosen_questions(options: argparse.Namespace) -> tuple[list[Question], str]:
    """The questions to ask, and the mode that they were prepared for; makes slime importable and the output folder.

    Raises ValueError if --mode is another one.
    """
    print("loading the questions and the tokenizer", flush=True)
    find_slime()
    questions = choose(read_questions(options.data), options.per_set, options.seed)[: options.limit]
    mode = mode_of(questions)
    if options.mode not in (None, mode):
        raise ValueError(
            f"--mode is {options.mode}, but the data was prepared for {mode}; prepare it again, or leave out --mode."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    return questions, mode


def settings_of(
    options: argparse.Namespace, plugin: argparse.Namespace, questions: Sequence[Question], mode: str
) -> dict[str, Any]:
    """Everything that the figures depend on; a run is continued only if all of it is equal. Raises ConfigError."""
    config = dataclasses.asdict(config_of(plugin))
    return {
        "model": plugin.hf_checkpoint,
        "mode": mode,
        "search": options.search.partition(":")[0],
        "apply_chat_template_kwargs": plugin.apply_chat_template_kwargs,
        **{name: getattr(options, name) for name in ("temperature", "max_response_len", "per_set", "limit", "seed")},
        "questions": hashlib.sha256("\n".join(question.id for question in questions).encode()).hexdigest()[:16],
        "config": {key: value for key, value in config.items() if key not in SECRETS | ADDRESSES},
    }


async def ask_all(
    questions: Sequence[Question],
    records: Records,
    concurrency: int,
    args_of: Callable[[Question, int], argparse.Namespace],
    samples: int = 1,
    title: str = "evaluation",
) -> None:
    """Asks each question `samples` times, `concurrency` at a time, and records each finished sample.

    Samples already in `records` are skipped. `args_of` gives slime's args for a question and its slot; a slot holds
    one question at a time.
    """
    from slime.rollout.sglang_rollout import GenerateState

    import generate_with_search

    unit = "questions" if samples == 1 else "samples"
    total, done = samples * len(questions), len(records.scores)
    if done:
        print(f"{done} of {total} {unit} are already finished", flush=True)
    slots: asyncio.Queue[int] = asyncio.Queue()
    for slot in range(concurrency):
        slots.put_nowait(slot)
    right = sum(scores["em"] for scores in records.scores.values())
    progress = Progress(title, total, unit, done=done)

    async def one(question: Question, group: int, number: int) -> None:
        nonlocal right
        slot = await slots.get()
        try:
            args = args_of(question, slot)
            sample = sample_of_row(args, GenerateState(args).tokenizer, question.row, group * samples + number)
            sample.group_index = group
            sample = await ask(args, sample, sampling_params(args))
        finally:
            slots.put_nowait(slot)
        scores = scores_of(sample, question.golds)
        which = {"id": question.id, "sample": number, "data_source": question.data_source}
        records.add(record_of(sample, **which, scores=scores))
        right += scores["em"]
        progress.update(note=f"exact match {right / len(records.scores):.3f}")

    try:
        with progress:
            async with asyncio.TaskGroup() as tasks:
                for group, question in enumerate(questions):
                    for number in range(samples):
                        if (question.id, number) not in records.scores:
                            tasks.create_task(one(question, group, number))
    except ExceptionGroup as errors:  # a wrong setting fails every question
        raise errors.exceptions[0] from None
    finally:
        await generate_with_search.close()


def report(
    options: argparse.Namespace, settings: dict[str, Any], questions: Sequence[Question], records: Records
) -> int:
    """Tables on the terminal, results.json and results.png; the exit code."""
    by_set: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for question in sorted(questions, key=lambda question: (rank(question.data_source), question.id)):
        samples = [records.scores[question.id, number] for number in range(options.samples)]
        by_set[question.data_source].append(together(samples))
    summary = summarise(by_set, options.seed)
    counts = {name: len(rows) for name, rows in by_set.items()}
    results = {
        name: {"questions": counts.get(name, len(questions)), **{key: value._asdict() for key, value in row.items()}}
        for name, row in summary.items()
    }
    write_json(options.output / "results.json", {"settings": settings, "results": results})
    print(tables(summary, counts))
    if audited := audit_lines(options.search, set(counts)):
        print("\n".join(audited), end="\n\n")
    draw(summary, counts, options.output / "results.png", title=Path(options.model).name)
    print(f"results are in {short(options.output)}; browse them with: {typed('view', options.output)}", flush=True)
    return complaints(list(records.scores.values()), "questions" if options.samples == 1 else "samples")


def complaints(scores: Sequence[Mapping[str, Any]], unit: str) -> int:
    """Reports failed searches and discarded samples on stderr; the exit code is 1 if a sample was discarded."""
    failed, searched, discarded = (
        int(sum(row[key] for row in scores)) for key in ("failed_searches", "searches", "gave_up")
    )
    if failed:
        print(f"warning: {failed} of {searched} searches failed, which lowers the figures", file=sys.stderr)
    if discarded:
        print(
            f"error: {discarded} of {len(scores)} {unit} were discarded and count as wrong; the log above says why. "
            "Run the same command again to retry them.",
            file=sys.stderr,
        )
    return int(discarded > 0)


if __name__ == "__main__":
    sys.exit(main())
