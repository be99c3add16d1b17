"""Repeats the rollouts of a demo run's GRPO steps, and prints "equal" or the first difference.

    search-r1 demo --keep-steps              save what a repetition needs, 540 MB per step
    search-r1 replay RUN 3                   repeat step 3
    search-r1 replay RUN                     repeat every saved step

It uses the step's weights and seeds, answers searches from the run's record, and admits requests in the recorded order.
On the same machine, with the same versions and number of threads, ids, masks, log-probabilities and rewards are equal
bit by bit. The optimiser's step is not repeated.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.train import MAX_LENGTH
from evaluation.options import command_parser
from evaluation.plugin import prepare_process
from evaluation.replay import first_difference
from evaluation.terminal import exit_code

if TYPE_CHECKING:  # it imports torch, which --help does not need
    from demo.kept_steps import KeptStep


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 if all steps are equal, 1 if one differs or cannot be repeated."""
    parser = command_parser("replay", __doc__)
    parser.add_argument("run", type=Path, help="folder of a demo run with --keep-steps")
    parser.add_argument("steps", type=int, nargs="*", metavar="step", help="which steps (default: all saved ones)")
    args = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_process()
    return exit_code(lambda: replay(args.run, args.steps))


def replay(run: Path, numbers: Sequence[int]) -> int:
    """Repeats the steps one after another; returns the exit code. Raises ValueError."""
    from transformers import AutoTokenizer

    from demo.kept_steps import kept_steps, load, machine
    from search_rollout.protocols.chat_template import decode

    steps = [load(run, number) for number in numbers or kept_steps(run) or [1]]
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer", local_files_only=True)
    all_equal = True
    with asyncio.Runner() as runner:
        for step in steps:
            name, recorded = f"step {step.folder.name}", step.trajectories
            again = runner.run(repeat(run.absolute(), step))
            difference = first_difference(recorded, again, partial(decode, tokenizer))
            tokens = sum(row["response_length"] for row in recorded)
            print(f"{name}: {difference or f'equal, {len(recorded)} samples of {tokens:,} tokens'}", flush=True)
            if difference and step.machine != (now := machine()):
                changed = [f"{key} was {was}, is {now[key]}" for key, was in step.machine.items() if now[key] != was]
                print(f"{name} was recorded under other conditions: {'; '.join(changed)}", file=sys.stderr)
            all_equal &= difference is None
    return 0 if all_equal else 1


async def repeat(run: Path, step: "KeptStep") -> list[dict[str, Any]]:
    """Rolls out a step's samples again. Raises ValueError if something it needs is missing."""
    import torch

    import generate_with_search
    from demo.engine import Engine
    from demo.engine_server import serving
    from demo.kept_steps import SEARCHES, samples_as_json
    from demo.models import load_policy
    from demo.rollouts import roll_out, slime_args

    if not (run / SEARCHES).is_file():
        raise ValueError(f"{run / SEARCHES} is missing: without it, searches cannot be repeated.")
    model, tokenizer = load_policy(step.folder / "model")
    with (
        Engine(model, tokenizer, dtype=getattr(torch, step.dtype), max_length=MAX_LENGTH) as engine,
        serving(engine) as port,
    ):
        del model  # the engine has its own copy
        engine.weight_version = step.weight_version
        engine.begin_step(step.order)
        args = slime_args(
            model=str(run / "tokenizer"),
            engine_port=port,
            retriever_port=1,  # never used
            max_length=MAX_LENGTH,
            api_mode=step.api_mode,
            seed=step.seed,
            searches=run / SEARCHES,
            repeats=True,
        )
        title = f"step {step.folder.name} again"
        try:
            groups = await roll_out(args, step.questions, samples=step.samples, evaluation=False, title=title)
        finally:
            await generate_with_search.close()
    return samples_as_json(groups)


if __name__ == "__main__":
    sys.exit(main())
