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
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "slime_standin"))  # what slime's workers have on PYTHONPATH: slime …
sys.path.insert(0, str(ROOT))  # … and this plugin's folder

from demo.memory import keep_freed_memory  # noqa: E402
from evaluation.options import command_parser  # noqa: E402
from evaluation.plugin import prepare_process  # noqa: E402
from evaluation.records import read_json  # noqa: E402
from evaluation.terminal import Progress, exit_code, short, typed  # noqa: E402

if TYPE_CHECKING:  # they import torch, which --help does not need
    from demo.engine import Engine
    from demo.run_folder import RunFolder
    from demo.world_facts import Question

MAX_LENGTH = 896  # maximum tokens per trajectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    args = parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    keep_freed_memory()
    # asyncio turns the first SIGINT into a cancellation, which takes effect at the end of a training step; a second one
    # takes effect immediately.
    prepare_process()
    return run(args) if args.debug else exit_code(lambda: run(args))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, or with --resume that of the interrupted run."""
    parser = _parser()
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


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("demo", __doc__)

    def option(name: str, default: Any, text: str, **more: Any) -> None:
        parser.add_argument(name, default=default, help=f"{text} (default: {more.pop('shown', default)})", **more)

    count, number = _positive(int), _positive(float)
    option("--minutes", 11.0, "total time; set-up, warm start, evaluations and one step always run", type=number)
    option("--steps", None, "maximum GRPO steps", type=count, shown="as many as time allows")
    option("--seed", 0, "seed for sampling and question order", type=int)
    option("--model", None, "Hugging Face model folder", type=Path, shown="SmolLM2-135M-Instruct, from its package")
    world = "folder with corpus.jsonl, train.jsonl, held_out.jsonl"
    option("--world", None, world, type=Path, shown="made from data packages")
    modes = "how the model searches: generate = XML tags, chat = messages and tool calls"
    option("--api-mode", "generate", modes, choices=["generate", "chat"])
    option("--device", "cpu", "device of engine and trainer", choices=["cpu", "cuda"])
    option("--dtype", "bfloat16", "arithmetic of engine and trainer", choices=["bfloat16", "float32"])
    option("--warm-start-steps", 16, "supervised steps on synthetic traces", type=count)
    option("--questions-per-step", 8, "questions (groups) per GRPO step", type=count)
    over = "questions asked at a time; rollouts that a step does not need go on in the next"
    option("--over-sampling", 12, over, type=count)
    option("--samples", 4, "rollouts per question, at least 2", type=count)
    option("--warm-learning-rate", 5e-5, "warm start's first rate; falls to GRPO's", type=number)
    option("--learning-rate", 2e-5, "GRPO's rate", type=number)
    option("--held-out", 128, "held-out questions to ask before and after", type=count)
    option("--runs", ROOT / "runs", "parent of the run's folder", type=Path, shown="runs/")
    option("--cache", ROOT / ".cache", "folder for model, corpus and index", type=Path, shown=".cache/")
    flag = parser.add_argument
    models = "keep the models before and after GRPO in the run's folder, for chat and evaluate (540 MB each)"
    flag("--save-models", action=argparse.BooleanOptionalAction, default=True, help=models)
    flag("--keep-steps", action="store_true", help="save each GRPO step for `search-r1 replay` (540 MB each)")
    flag("--resume", type=Path, metavar="RUN", help="continue an interrupted run; its own options apply")
    flag("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _arguments_of(run: Path) -> list[str]:
    """The command line that started a run. Raises ValueError if it cannot be resumed."""
    summary = read_json(run / "summary.json")
    if "arguments" not in summary:
        raise ValueError(f"{run} is not the folder of a demo run that can be resumed")
    if "gain" in summary:
        raise ValueError(f"{run} is finished; start a new run")
    return [str(word) for word in summary["arguments"]]


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
        from demo.engine_server import serving
        from demo.models import load_policy, onnx_encoder_folder, policy_folder, tool_tokenizer_folder
        from demo.retriever_process import RetrieverProcess, build_index, index_path
        from demo.training_run import TrainingRun
        from demo.world_facts import load_questions

        model_folder = args.model or policy_folder(args.cache)
        model, tokenizer = load_policy(model_folder, args.device)
        world = args.world or _made_world(args.cache)
        encoder = onnx_encoder_folder(args.cache)
        train, held_out = load_questions(world / "train.jsonl"), load_questions(world / "held_out.jsonl")
    corpus, held_out = world / "corpus.jsonl", held_out[: args.held_out]
    index = index_path(args.cache, corpus)
    build_index(corpus, index, encoder)
    tokenizer_folder = tool_tokenizer_folder(model_folder, args.cache) if args.api_mode == "chat" else model_folder
    run_folder = _run_folder(args, held_out, corpus, tokenizer_folder)
    with ExitStack() as stack:
        with Progress("starting the retriever and the engine"):
            log = run_folder.path / "retriever.log"
            retriever = stack.enter_context(RetrieverProcess(corpus, index, encoder, log))
            engine = stack.enter_context(_engine(args, model, tokenizer))
            port = stack.enter_context(serving(engine))
        say(f"retriever on port {retriever.port}, engine on port {port}; run folder {short(run_folder.path)}")
        plugin = _plugin_args(args, tokenizer_folder, port, retriever.port, run_folder.path.absolute())
        finished = TrainingRun(args, plugin, run_folder, model, tokenizer, engine, train, held_out, started).run()
    _say_what_next(run_folder.path, finished, args.save_models)
    print(run_folder.path, flush=True)
    return 0 if finished else 130


def _made_world(cache: Path) -> Path:
    """The folder with the corpus and the questions that are made from data packages."""
    from demo.world_facts import build_world, write_world

    write_world(build_world(), cache / "world")
    return cache / "world"


def _run_folder(
    args: argparse.Namespace, held_out: "Sequence[Question]", corpus: Path, tokenizer_folder: Path
) -> "RunFolder":
    """The run's folder, with what a later evaluation needs besides the models."""
    from demo.models import keep_tokenizer
    from demo.rollouts import evaluation_rows, settings
    from demo.run_folder import RunFolder

    folder = RunFolder(args.resume) if args.resume else RunFolder.new(args.runs, args.seed)
    rows = evaluation_rows(held_out, args.api_mode, corpus)
    folder.keep_evaluation(rows, settings(args.api_mode, MAX_LENGTH), corpus)
    keep_tokenizer(tokenizer_folder, folder.path / "tokenizer")
    return folder


def _engine(args: argparse.Namespace, model: Any, tokenizer: Any) -> "Engine":
    import torch

    from demo.engine import SLOTS, Engine

    return Engine(
        model,
        tokenizer,
        dtype=getattr(torch, args.dtype),
        slots=SLOTS if args.keep_steps else max(SLOTS, args.over_sampling * args.samples),
        max_length=MAX_LENGTH,
        seed=args.seed,
    )


def _plugin_args(
    args: argparse.Namespace, tokenizer_folder: Path, engine_port: int, retriever_port: int, run: Path
) -> argparse.Namespace:
    """slime's args for the plugin; kept steps must not depend on anything that is not kept."""
    from demo.kept_steps import SEARCHES
    from demo.rollouts import slime_args

    return slime_args(
        model=str(tokenizer_folder),
        engine_port=engine_port,
        retriever_port=retriever_port,
        max_length=MAX_LENGTH,
        api_mode=args.api_mode,
        questions=args.questions_per_step,
        seed=args.seed if args.keep_steps else None,
        searches=run / SEARCHES if args.keep_steps else None,
    )


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
