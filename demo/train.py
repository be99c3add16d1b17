"""Trains a small language model to search, on a CPU, with real parts: the demo behind `make demo`.

    search-r1 demo                          takes 11 minutes; the last lines name the folder with the results
    search-r1 demo --resume runs/demo-…     continue an interrupted or killed run, with its original options

1 a corpus of real-world facts and questions about it             demo/world_facts.py
2 the real retriever, as a separate server                        local_dense_retriever/
3 an engine that speaks SGLang's /generate over HTTP              demo/engine.py, demo/engine_server.py
4 a few supervised steps on synthetic traces                      demo/warm_start.py
5 GRPO: groups of rollouts by the plugin as slime calls it        generate_with_search.py, demo/group_sampling.py
  and steps on them                                               demo/grpo.py
6 exact match on held-out questions before and after, a report    demo/report.py
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "slime_standin"))  # what slime's workers have on PYTHONPATH: slime …
sys.path.insert(0, str(ROOT))  # … and this plugin's folder

from demo.memory import keep_freed_memory  # noqa: E402
from evaluation.interruption import terminating_interrupts  # noqa: E402
from evaluation.terminal import Progress, short, typed  # noqa: E402

MAX_LENGTH = 896  # maximum tokens per trajectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    args = parse_args(argv)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # asyncio turns the first SIGINT into a cancellation, which takes effect at the end of a training step; a second one
    # takes effect immediately.
    terminating_interrupts()
    try:
        return run(args)
    except (OSError, ValueError, RuntimeError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="search-r1 demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def option(name: str, default: Any, text: str, **more: Any) -> None:
        parser.add_argument(name, default=default, help=f"{text} (default: {more.pop('shown', default)})", **more)

    option(
        "--minutes", 11.0, "total time; set-up, warm start, evaluations and one step always run", type=_positive(float)
    )
    option("--steps", None, "maximum GRPO steps", type=_positive(int), shown="as many as time allows")
    option("--seed", 0, "seed for sampling and question order", type=int)
    option("--model", None, "Hugging Face model folder", type=Path, shown="SmolLM2-135M-Instruct, from its package")
    option(
        "--world",
        None,
        "folder with corpus.jsonl, train.jsonl, held_out.jsonl",
        type=Path,
        shown="made from data packages",
    )
    option(
        "--api-mode",
        "generate",
        "how the model searches: generate = XML tags, chat = messages and tool calls",
        choices=["generate", "chat"],
    )
    option("--device", "cpu", "device of engine and trainer", choices=["cpu", "cuda"])
    option("--dtype", "bfloat16", "arithmetic of engine and trainer", choices=["bfloat16", "float32"])
    option("--warm-start-steps", 16, "supervised steps on synthetic traces", type=_positive(int))
    option("--questions-per-step", 8, "questions (groups) per GRPO step", type=_positive(int))
    option(
        "--over-sampling",
        12,
        "questions asked at a time; rollouts that a step does not need go on in the next",
        type=_positive(int),
    )
    option("--samples", 4, "rollouts per question, at least 2", type=_positive(int))
    option("--warm-learning-rate", 5e-5, "warm start's first rate; falls to GRPO's", type=_positive(float))
    option("--learning-rate", 2e-5, "GRPO's rate", type=_positive(float))
    option("--held-out", 128, "held-out questions to ask before and after", type=_positive(int))
    option("--runs", ROOT / "runs", "parent of the run's folder", type=Path, shown="runs/")
    option("--cache", ROOT / ".cache", "folder for model, corpus and index", type=Path, shown=".cache/")
    parser.add_argument(
        "--save-models",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the models before and after GRPO in the run's folder, for chat and evaluate (540 MB each)",
    )
    parser.add_argument(
        "--keep-steps",
        action="store_true",
        help="save each GRPO step for `search-r1 replay` (540 MB each)",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run; its own options apply")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    if args.samples < 2:
        parser.error("--samples must be 2 or more: an advantage compares the samples of one question")
    if args.resume:
        try:
            arguments = _arguments_of(args.resume)
        except ValueError as error:
            parser.error(str(error))
        args = argparse.Namespace(**{**vars(parser.parse_args(arguments)), "resume": args.resume, "debug": args.debug})
    args.arguments = arguments
    return args


def _arguments_of(run: Path) -> list[str]:
    """The command line that started a run. Raises ValueError if it cannot be resumed."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        arguments = summary["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run} is not the folder of a demo run that can be resumed") from error
    if "gain" in summary:
        raise ValueError(f"{run} is finished; start a new run")
    return [str(word) for word in arguments]


def _positive(kind: type) -> Any:
    def convert(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    convert.__name__ = kind.__name__
    return convert


def run(args: argparse.Namespace) -> int:
    """Sets up model, corpus, retriever and engine, trains, and tears everything down."""
    started = time.monotonic()
    for folder in (args.runs, args.cache):  # an unwritable folder must fail before the long work
        folder.mkdir(parents=True, exist_ok=True)
    say("phase 1 of 5: model, corpus, index, servers, about a minute")
    with Progress("loading PyTorch, the model and the questions"):
        from demo.models import (
            keep_tokenizer,
            load_policy,
            onnx_encoder_folder,
            policy_folder,
            tool_tokenizer_folder,
        )
        from demo.retriever_process import RetrieverProcess, build_index, index_path
        from demo.world_facts import build_world, load_questions, write_world

        model_folder = args.model or policy_folder(args.cache)
        model, tokenizer = load_policy(model_folder, args.device)
        world = args.world or args.cache / "world"
        if args.world is None:
            write_world(build_world(), world)
        encoder = onnx_encoder_folder(args.cache)
        train, held_out = load_questions(world / "train.jsonl"), load_questions(world / "held_out.jsonl")
    held_out = held_out[: args.held_out]
    index = index_path(args.cache, world / "corpus.jsonl")
    build_index(world / "corpus.jsonl", index, encoder)

    import torch

    from demo.engine import SLOTS, Engine
    from demo.engine_server import EngineServer
    from demo.kept_steps import SEARCHES
    from demo.rollouts import evaluation_rows, settings, slime_args
    from demo.run_folder import RunFolder
    from demo.training_run import TrainingRun

    folder = RunFolder.existing(args.resume) if args.resume else RunFolder(args.runs, args.seed)
    rows = evaluation_rows(held_out, args.api_mode, world / "corpus.jsonl")
    folder.keep_evaluation(rows, settings(args.api_mode, MAX_LENGTH), world / "corpus.jsonl")
    tokenizer_folder = tool_tokenizer_folder(model_folder, args.cache) if args.api_mode == "chat" else model_folder
    keep_tokenizer(tokenizer_folder, folder.path / "tokenizer")
    with ExitStack() as stack:
        with Progress("starting the retriever and the engine"):
            retriever = stack.enter_context(
                RetrieverProcess(world / "corpus.jsonl", index, encoder, folder.path / "retriever.log")
            )
            engine = stack.enter_context(
                Engine(
                    model,
                    tokenizer,
                    dtype=getattr(torch, args.dtype),
                    slots=SLOTS if args.keep_steps else max(SLOTS, args.over_sampling * args.samples),
                    max_length=MAX_LENGTH,
                    seed=args.seed,
                )
            )
            server = stack.enter_context(EngineServer(engine))
        say(f"retriever on port {retriever.port}, engine on port {server.port}; run folder {short(folder.path)}")
        plugin = slime_args(
            model=str(tokenizer_folder),
            engine_port=server.port,
            retriever_port=retriever.port,
            max_length=MAX_LENGTH,
            api_mode=args.api_mode,
            questions=args.questions_per_step,
            seed=args.seed if args.keep_steps else None,
            searches=folder.path.absolute() / SEARCHES if args.keep_steps else None,
        )
        finished = TrainingRun(args, plugin, folder, model, tokenizer, engine, train, held_out, started).run()
    _say_what_next(folder.path, finished, args.save_models)
    print(folder.path, flush=True)
    return 0 if finished else 130


def _say_what_next(run: Path, finished: bool, has_models: bool) -> None:
    commands: dict[str, tuple[object, ...]] = {"continue this run": ("demo", "--resume", run)}
    if finished:
        commands = {"browse its trajectories": ("view", run), "compare before and after": ("compare", run)}
    if finished and has_models:
        commands |= {"ask the trained model": ("chat", run), "evaluate it again": ("evaluate", run)}
        commands |= {"test whether searching helps it": ("exam", run)}
        commands |= {"check it with preflight": ("preflight", run)}
    print("next:")
    for what, words in commands.items():
        print(f"  {typed(*words)}  # {what}")


def say(text: str) -> None:
    """Prints a progress line."""
    print(f"[demo] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
