"""Starts a finished run's model and retriever again, to ask questions, repeat the evaluation, or check the setup.

    search-r1 chat RUN           ask it questions at the terminal; --ask "…" asks only one
    search-r1 evaluate RUN       ask its held-out questions again; writes RUN/evaluation-after
    search-r1 exam RUN           test whether it searches, and whether that helps; writes RUN/exam-after
    search-r1 preflight RUN      check the training setup, with one real rollout
    search-r1 serve RUN          serve both until Ctrl-C, for your own programs

`--phase before` uses the model before GRPO. Other options are passed to the command itself.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from demo.train import MAX_LENGTH, ROOT
from evaluation.interruption import terminating_interrupts
from evaluation.options import command_parser
from evaluation.records import read_json
from evaluation.terminal import Progress, short


class Served(NamedTuple):
    """A run whose model and retriever are running."""

    run: Path
    model: Path  # the Hugging Face folder, named after its phase
    config: dict[str, Any]  # the run's options
    engine: str  # URL
    retriever: str  # URL


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until interrupted, or as long as the chosen command runs; returns the exit code."""
    parser = command_parser("serve", __doc__)
    parser.allow_abbrev = False  # unknown options belong to the command
    add = parser.add_argument
    add("run", type=Path, help="the folder named on the demo's last line")
    add("--phase", choices=["before", "after"], default="after", help="the model before or after GRPO (default: after)")
    add("--cache", type=Path, default=ROOT / ".cache", help="where the index is kept (default: .cache/)")
    what = parser.add_mutually_exclusive_group()
    for name in DOINGS:
        what.add_argument(
            f"--{name}", dest="what", action="store_const", const=name, help=f"same as search-r1 {name} RUN"
        )
    args, more = parser.parse_known_args(argv)
    if more and not args.what:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    terminating_interrupts()
    try:
        with served(args.run, args.phase, args.cache) as run:
            return DOINGS[args.what](run, more) if args.what else wait(run)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


@contextmanager
def served(run: Path, phase: str, cache: Path) -> Iterator[Served]:
    """Runs a run's engine and retriever for the context. Raises ValueError if it has no model of that phase."""
    model = run / phase
    config = read_json(run / "summary.json").get("config")
    if config is None or not (model / "config.json").is_file():
        raise ValueError(
            f"{run} is not a finished run with a model in {phase}/ (saved unless --no-save-models is given)."
        )
    print(f"starting the engine on {short(model)} and the retriever, about half a minute", file=sys.stderr, flush=True)
    with ExitStack() as stack:
        with Progress("starting engine and retriever"):
            import torch

            from demo.engine import Engine
            from demo.engine_server import serving
            from demo.models import load_policy, onnx_encoder_folder
            from demo.retriever_process import RetrieverProcess, build_index, index_path

            corpus, encoder = run / "corpus.jsonl", onnx_encoder_folder(cache)
            index = index_path(cache, corpus)
            build_index(corpus, index, encoder)
            policy, tokenizer = load_policy(model)
            retriever = stack.enter_context(RetrieverProcess(corpus, index, encoder, run / "retriever.log"))
            dtype = getattr(torch, config["dtype"])
            engine = stack.enter_context(Engine(policy, tokenizer, dtype=dtype, max_length=MAX_LENGTH))
            del policy  # the engine has its own copy
            port = stack.enter_context(serving(engine))
        yield Served(run.absolute(), model.absolute(), config, f"http://127.0.0.1:{port}", retriever.url)


def wait(run: Served) -> int:
    """Serves until Ctrl-C."""
    print(f"engine {run.engine}, retriever {run.retriever}; Ctrl-C stops both", flush=True)
    threading.Event().wait()
    return 0


def chat(run: Served, more: Sequence[str]) -> int:
    """Asks questions at the terminal."""
    from evaluation.chat import main as command

    mode = "chat" if run.config["api_mode"] == "chat" else "xml"
    return command([*_evaluation_options(run), "--mode", mode, *more])


def evaluate(run: Served, more: Sequence[str]) -> int:
    """Asks the held-out questions again; writes into a folder of the run."""
    from evaluation.run import main as command

    return command([*_evaluation_options(run, "evaluation"), "--per_set", "all", *more])


def exam(run: Served, more: Sequence[str]) -> int:
    """Runs the exam's five arms on the held-out questions; writes into a folder of the run."""
    from evaluation.exam import main as command

    return command([*_evaluation_options(run, "exam"), *more])


def preflight(run: Served, more: Sequence[str]) -> int:
    """Runs the setup checks that apply to the demo, and one real rollout."""
    from demo.rollouts import MAX_RESPONSE_LEN
    from preflight.__main__ import main as command
    from preflight.__main__ import prepare_process

    os.environ.update(
        HF_CHECKPOINT=str(run.model),
        PROMPT_DATA=str(run.run / "eval.jsonl"),
        CUSTOM_CONFIG_PATH=str(run.run / "settings.yaml"),
        LLM_API_MODE=run.config["api_mode"],
        SEARCH_BACKEND="local",
        RETRIEVAL_SERVER_URL=run.retriever,
        ROLLOUT_MAX_RESPONSE_LEN=str(MAX_RESPONSE_LEN),
        ROLLOUT_BATCH_SIZE="1",  # there may be fewer held-out questions than a training step needs
    )
    prepare_process()
    return command(["--skip", "packages", "machine", "model", "--engine", run.engine, *more])


DOINGS: dict[str, Callable[[Served, Sequence[str]], int]] = {
    "chat": chat,
    "evaluate": evaluate,
    "exam": exam,
    "preflight": preflight,
}


def _evaluation_options(run: Served, output: str = "") -> list[str]:
    """What a command of evaluation/ needs; with the name of its `output`, it asks the held-out questions."""
    from demo.rollouts import MAX_RESPONSE_LEN

    options = ["--model", run.model, "--engine", run.engine, "--search", f"local:{run.retriever}"]
    options += ["--custom_config_path", run.run / "settings.yaml", "--max_response_len", MAX_RESPONSE_LEN]
    if output:
        options += ["--data", run.run / "eval.jsonl", "--output", run.run / f"{output}-{run.model.name}"]
        options += ["--concurrency", 256]  # all at once, like the demo: in bfloat16 a reply may depend on its batch
    return [str(word) for word in options]


if __name__ == "__main__":
    sys.exit(main())
