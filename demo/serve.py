"""Puts a finished run's model and retriever up again: to ask it questions, or to evaluate it once more.

    python -m demo.serve runs/demo-…              the trained model
    python -m demo.serve runs/demo-… --phase before    the model before GRPO

Prints three commands for another terminal, to check, to ask and to evaluate it, and serves until Ctrl-C.
"""

import argparse
import json
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo.interruption import terminating_interrupts
from demo.train import MAX_LENGTH, ROOT


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder that the demo named in its last line")
    parser.add_argument("--phase", choices=["before", "after"], default="after", help="of GRPO (default: after)")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".cache", help="where the index is kept (default: .cache/)"
    )
    args = parser.parse_args(argv)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    terminating_interrupts()
    try:
        serve(args.run, args.phase, args.cache)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


def serve(run: Path, phase: str, cache: Path) -> None:
    """Raises ValueError if the folder is not that of a run that kept its models."""
    model = run / phase
    if not (model / "config.json").is_file() or not (run / "summary.json").is_file():
        raise ValueError(
            f"{run} holds no finished run with a model in {phase}/ (kept unless --no-save-models is given)."
        )
    config = json.loads((run / "summary.json").read_text(encoding="utf-8"))["config"]
    import torch

    from demo.engine import Engine
    from demo.engine_server import EngineServer
    from demo.models import encoder_folder, load_policy
    from demo.retriever_process import RetrieverProcess, build_index, index_path

    corpus, encoder = run / "corpus.jsonl", encoder_folder()
    index = index_path(cache, corpus)
    cache.mkdir(parents=True, exist_ok=True)
    build_index(corpus, index, encoder)
    with ExitStack() as stack:
        policy, tokenizer = load_policy(model)
        retriever = stack.enter_context(RetrieverProcess(corpus, index, encoder, run / "retriever.log"))
        engine = stack.enter_context(
            Engine(policy, tokenizer, dtype=getattr(torch, config["dtype"]), max_length=MAX_LENGTH)
        )
        del policy  # the engine has its own
        server = stack.enter_context(EngineServer(engine))
        print(_commands(run.absolute(), phase, config, f"http://127.0.0.1:{server.port}", retriever.url), flush=True)
        threading.Event().wait()


def _commands(run: Path, phase: str, config: dict[str, Any], engine: str, retriever: str) -> str:
    from demo.rollouts import MAX_RESPONSE_LEN

    python = [sys.executable, "-m"]
    settings = {
        "HF_CHECKPOINT": run / phase,
        "PROMPT_DATA": run / "eval.jsonl",
        "CUSTOM_CONFIG_PATH": run / "settings.yaml",
        "LLM_API_MODE": config["api_mode"],
        "SEARCH_BACKEND": "local",
        "RETRIEVAL_SERVER_URL": retriever,
        "ROLLOUT_MAX_RESPONSE_LEN": MAX_RESPONSE_LEN,
        "ROLLOUT_BATCH_SIZE": 1,  # the held-out questions may be fewer than a training step's
    }
    preflight = ["env", *(f"{name}={value}" for name, value in settings.items()), *python, "preflight"]
    preflight += ["--skip", "packages", "machine", "model", "--engine", engine]
    shared = ["--model", run / phase, "--engine", engine, "--search", f"local:{retriever}"]
    shared += ["--custom_config_path", run / "settings.yaml", "--max_response_len", MAX_RESPONSE_LEN]
    ask = [*python, "evaluation.chat", *shared, "--mode", "chat" if config["api_mode"] == "chat" else "xml"]
    # All questions at once, as the demo asks them: in bfloat16 a reply may depend on what shares its batch.
    evaluate = [*python, "evaluation.run", *shared, "--concurrency", 256, "--data", run / "eval.jsonl"]
    evaluate += ["--per_set", "all", "--output", run / f"evaluation-{phase}"]
    lines = "\n\n".join(shlex.join(map(str, command)) for command in (preflight, ask, evaluate))
    return f"engine {engine}, retriever {retriever}; in another terminal:\n\n{lines}\n\nCtrl-C stops both."


if __name__ == "__main__":
    sys.exit(main())
