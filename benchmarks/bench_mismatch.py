"""How far engine and trainer differ, by token ids and by text, and what importance weights do about it.

    python -m benchmarks.bench_mismatch --model runs/demo-…/after [--questions 16] [--json FILE]

One model that searches, one engine (demo/engine.py), one trainer (demo/grpo.py), temperature 1. Five ways to the
log-probabilities of trained tokens in the engine:

    ids            generate_with_search: ids in, ids out; as sampled
    ids, again     the same trajectories, scored once more by the engine: what batching alone changes
    text           the same trajectories; each turn scored behind prompt + response as one text, tokenised again
    text, stop     sampled the way of slime's search-r1 example since June 2026: text, stop strings
    text, no stop  the same before: the model writes on behind </search> and </answer>, and all of it is trained

`--tokenizer` counts before how many later turns another model's tokenizer would read the same texts otherwise.

A token's weight is trainer / engine probability, as slime defines it. TIS cuts it at --tis-clip 2; MIS drops a token
outside 0.5 to 2; a trajectory is vetoed if one of its weights is below 1e-4 (the last two by slime's mis.yaml).
"""

import argparse
import asyncio
import itertools
import math
import os
import statistics
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.reporting import CACHE, Report, parser, run
from demo.engine import Engine, Request, SamplingParams
from demo.engine_server import serving
from demo.grpo import Lot, TrainSample, masked_log_probs
from demo.models import encoder_folder, load_policy
from demo.prefix_tree import merge
from demo.retriever_process import RetrieverProcess, build_index, index_path
from demo.rollouts import roll_out, sample_of, slime_args
from demo.train import MAX_LENGTH
from demo.world_facts import Question, build_world, load_questions, write_world
from evaluation.plugin import find_slime
from evaluation.terminal import Progress
from search_rollout.config import load_config
from search_rollout.http_client import never
from search_rollout.protocols.chat_template import encode
from search_rollout.protocols.xml import STOP_STRINGS, first_action
from search_rollout.runtime import Runtime, engine_url
from search_rollout.samples.record import record_of
from search_rollout.search.searcher import search_all

TIS_CLIP = 2.0  # slime's --tis-clip; --tis-clip-low is 0
MIS_BOUNDS = 0.5, 2.0  # tis_lower_bound and tis_upper_bound of slime's examples/train_infer_mismatch_helper/mis.yaml
VETO = 1e-4  # rs_veto_threshold there
TEXT_TURNS = 2  # max_turns of slime's example
CALL_TOKENS = 96  # of one engine call by text; slime's example allows 512
SAMPLES = 4  # of each question
DTYPE = torch.bfloat16


@dataclass
class Turn:
    """A turn of the model: where it stands among the response's ids, and the engine's log-probability of each id."""

    start: int
    log_probs: list[float]
    retokenised: bool = False  # the engine read other ids before it than those that are trained on


@dataclass
class Trajectory:
    """What training is given, and what the engine said about it."""

    prompt: str
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)  # of the response
    mask: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    surplus: int = 0  # trained ids behind the end of a turn's action

    def context(self, turn: Turn) -> list[int]:
        """The ids before a turn."""
        return self.prompt_ids + self.ids[: turn.start]

    def append(self, ids: Sequence[int], *, trained: int) -> None:
        """Adds to the response."""
        self.ids += ids
        self.mask += [trained] * len(ids)


def by_ids(sample: Any) -> Trajectory:
    """A rollout of the plugin."""
    begin = len(sample.tokens) - sample.response_length
    made = Trajectory(sample.prompt, sample.tokens[:begin], sample.tokens[begin:], sample.loss_mask)
    place = 0
    for kind, tokens in record_of(sample).spans:  # type: ignore[union-attr]
        if kind == "turn":
            made.turns.append(Turn(place, sample.rollout_log_probs[place : place + tokens]))
        place += tokens
    return made


async def scored(engine: Engine, tokenizer: Any, origin: Trajectory, *, as_text: bool) -> Trajectory:
    """The same trajectory with the engine's log-probabilities behind its own ids, or behind its text."""

    async def score(turn: Turn) -> Turn:
        context = origin.context(turn)
        if as_text:
            context = encode(tokenizer, origin.prompt + tokenizer.decode(origin.ids[: turn.start]))
        ids = origin.ids[turn.start : turn.start + len(turn.log_probs)]
        request = Request(uuid.uuid4().hex, context + ids, SamplingParams(max_new_tokens=0), len(context) - 1)
        done = await asyncio.wrap_future(engine.submit(request))
        return Turn(turn.start, done.input_log_probs[1:], context != origin.context(turn))  # type: ignore[arg-type]

    turns = await asyncio.gather(*map(score, origin.turns))
    return Trajectory(origin.prompt, origin.prompt_ids, origin.ids, origin.mask, list(turns))


async def by_text(runtime: Runtime, engine: Engine, args: Any, sample: Any, stop: tuple[str, ...]) -> Trajectory:
    """A rollout in the way of slime's search-r1 example; what it reads is rendered by the plugin."""
    tokenizer, protocol = engine.tokenizer, (await runtime.begin(args, sample, {}, False)).protocol
    made = Trajectory(sample.prompt, encode(tokenizer, sample.prompt))
    text = sample.prompt
    for _ in range(TEXT_TURNS):
        context = encode(tokenizer, text)
        params = SamplingParams(min(CALL_TOKENS, MAX_LENGTH - len(context)), stop=stop, skip_special_tokens=False)
        if params.max_new_tokens < 1:
            break
        done = await asyncio.wrap_future(engine.submit(Request(uuid.uuid4().hex, context, params)))
        made.turns.append(Turn(len(made.ids), done.log_probs, retokenised=context != made.prompt_ids + made.ids))
        said = tokenizer.decode(done.output_ids)
        made.surplus += len(done.output_ids) - _tokens_of_action(tokenizer, done.output_ids)
        made.append(done.output_ids, trained=1)
        action = first_action(said)
        if (done.finish_reason or {}).get("type") == "length" or action.kind == "answer":
            break
        message = protocol.correct(done.output_ids[-1], False)
        if action.kind == "search":
            results = await search_all(runtime.search, action.queries, never)
            message = protocol.observe(action, results or [], done.output_ids[-1])
        made.append(message.ids, trained=0)
        text += said + message.text
    return made


def _tokens_of_action(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many leading ids hold the turn's first closed action; all if there is none."""
    for count in range(1, len(ids)):
        if any(tag in tokenizer.decode(ids[:count]) for tag in STOP_STRINGS):
            return count
    return len(ids)


def trainer_log_probs(model: Any, trajectory: Trajectory) -> torch.Tensor:
    """(N,) the trainer's log-probabilities of the trained ids."""
    whole = TrainSample(trajectory.prompt_ids + trajectory.ids, trajectory.mask, [0.0] * len(trajectory.mask))
    with torch.inference_mode():
        return masked_log_probs(model, [Lot([whole], merge([whole.tokens]))], DTYPE)


def figures(
    trajectories: Sequence[Trajectory], trainer: Sequence[torch.Tensor], reread: Sequence[torch.Tensor] | None
) -> dict[str, float]:
    """What the differences and the weights look like.

    `reread`: for each trajectory (N,) whether a trained token stands in a turn that the way "text" reads otherwise.
    """
    engine = [torch.tensor([value for turn in one.turns for value in turn.log_probs]) for one in trajectories]
    by_trajectory = [ours - theirs for ours, theirs in zip(trainer, engine, strict=True)]  # (N,) each
    delta = torch.cat(by_trajectory)
    weights, later = delta.exp(), [turn for one in trajectories for turn in one.turns[1:]]
    size, low, high = delta.abs(), *MIS_BOUNDS
    dropped = [(one.exp() < low) | (one.exp() > high) for one in by_trajectory]  # (N,) each
    return {
        "trajectories": len(trajectories),
        "trained tokens": len(delta),
        "surplus tokens": sum(one.surplus for one in trajectories) / len(delta),
        "later turns retokenised": sum(turn.retokenised for turn in later) / max(len(later), 1),
        "mean |Δ|": size.mean().item(),
        "mean |Δ| where text differs": size[torch.cat(list(reread))].mean().item() if reread else math.nan,
        "median |Δ|": size.median().item(),
        "99 % |Δ|": size.quantile(0.99).item(),
        "largest |Δ|": size.max().item(),
        "|Δ| > 0.1": (size > 0.1).double().mean().item(),
        "weight, mean": weights.mean().item(),
        "weight, 1 %": weights.quantile(0.01).item(),
        "weight, 99 %": weights.quantile(0.99).item(),
        "cut by TIS": (weights > TIS_CLIP).double().mean().item(),
        "dropped by MIS": torch.cat(dropped).double().mean().item(),
        "trajectories touched by MIS": statistics.fmean(one.any() for one in dropped),
        "trajectories vetoed": statistics.fmean((one.exp() < VETO).any() for one in by_trajectory),
        "effective tokens": effective_share(weights.clamp(max=TIS_CLIP)),
        "effective trajectories": effective_share(torch.stack([one.sum() for one in by_trajectory]).exp()),
    }


def in_retokenised_turns(trajectory: Trajectory) -> torch.Tensor:
    """(N,) for each trained token, whether the engine read other ids before its turn."""
    return torch.tensor([turn.retokenised for turn in trajectory.turns for _ in turn.log_probs])


def retokenised_by(tokenizer: Any, ours: Any, trajectories: Sequence[Trajectory]) -> float:
    """The share of later turns before which another tokenizer reads text otherwise than part by part."""
    differs = []
    for one in trajectories:
        starts = [place for turn in one.turns for place in (turn.start, turn.start + len(turn.log_probs))]
        parts = [ours.decode(one.ids[start:end]) for start, end in itertools.pairwise(starts)]
        text, ids = one.prompt, encode(tokenizer, one.prompt)
        for number, part in enumerate(parts):
            text, ids = text + part, ids + encode(tokenizer, part)
            if number % 2:  # behind an observation, where a later turn begins
                differs.append(encode(tokenizer, text) != ids)
    return statistics.fmean(differs)


def effective_share(weights: torch.Tensor) -> float:
    """Effective sample size over sample size, (Σw)² / (n Σw²): 1 if all weights are equal, 1/n if one has it all."""
    weights = weights.double()
    return (weights.sum() ** 2 / (len(weights) * (weights**2).sum())).item()


def _shown(name: str, value: float) -> str:
    if name in ("trajectories", "trained tokens"):
        return f"{value:.0f}"
    if "Δ| >" in name or ("Δ" not in name and not name.startswith("weight")):
        return f"{100 * value:.2f} %"
    return "" if math.isnan(value) else f"{value:.4f}"


async def trajectories(
    plugin: argparse.Namespace, engine: Engine, questions: Sequence[Question]
) -> dict[str, list[Trajectory]]:
    """Way → trajectories, those that were discarded left out."""
    from slime.rollout.sglang_rollout import GenerateState

    import generate_with_search

    tokenizer = engine.tokenizer
    groups = await roll_out(plugin, questions, samples=SAMPLES, evaluation=False, title="by ids")
    ids = [by_ids(sample) for group in groups for sample in group if any(sample.loss_mask)]
    ways = {"ids": ids}
    for name, as_text in (("ids, again", False), ("text", True)):
        ways[name] = await asyncio.gather(*(scored(engine, tokenizer, one, as_text=as_text) for one in ids))
    runtime = Runtime(engine_url(plugin), load_config({}, {}, plugin), GenerateState(plugin))
    try:
        for name, stop in (("text, stop", STOP_STRINGS), ("text, no stop", ())):
            fresh = [sample_of(plugin, tokenizer, question) for question in questions for _ in range(SAMPLES)]
            ways[name] = await asyncio.gather(*(by_text(runtime, engine, plugin, one, stop) for one in fresh))
    finally:
        await runtime.close()
        await generate_with_search.close()
    return ways


def figures_of_ways(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Way → figures; prints what the other tokenizer does."""
    world, encoder = CACHE / "world", encoder_folder()
    write_world(build_world(), world)
    corpus, index = world / "corpus.jsonl", index_path(CACHE, world / "corpus.jsonl")
    build_index(corpus, index, encoder)
    model, tokenizer = load_policy(args.model)
    torch.manual_seed(0)
    with ExitStack() as stack:
        retriever = stack.enter_context(RetrieverProcess(corpus, index, encoder, CACHE / "retriever.log"))
        engine = stack.enter_context(Engine(model, tokenizer, dtype=DTYPE, max_length=MAX_LENGTH))
        port = stack.enter_context(serving(engine))
        plugin = slime_args(
            model=str(args.model), engine_port=port, retriever_port=retriever.port, max_length=MAX_LENGTH
        )
        plugin.rollout_temperature = 1.0  # at which the engine scores given ids
        questions = load_questions(world / "train.jsonl")[: args.questions]
        ways = asyncio.run(trajectories(plugin, engine, questions))
    everything = {(*one.prompt_ids, *one.ids): one for made in ways.values() for one in made}
    trainer = {}
    with Progress("trainer", len(everything), "trajectories") as progress:
        for ids, one in everything.items():
            trainer[ids] = trainer_log_probs(model, one)
            progress.update()
    if args.tokenizer:
        share = retokenised_by(PreTrainedTokenizerFast.from_pretrained(args.tokenizer), tokenizer, ways["ids"])
        print(f"{args.tokenizer.name} would read the text otherwise before {100 * share:.0f} % of the later turns\n")
    reread = [in_retokenised_turns(one) for one in ways["text"]]
    same = ("ids", "ids, again", "text")  # trajectories, in the same order
    return {
        name: figures(made, [trainer[(*one.prompt_ids, *one.ids)] for one in made], reread if name in same else None)
        for name, made in ways.items()
    }


def measure(report: Report) -> None:
    """A column for each way."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    find_slime()
    found = figures_of_ways(report.args)
    rows = [{"": name} | {way: _shown(name, figures[name]) for way, figures in found.items()} for name in found["ids"]]
    report.table("engine against trainer", rows)
    report.figures["ways"] = found
    again, text = (found[way]["mean |Δ| where text differs"] for way in ("ids, again", "text"))
    report.bound("by ids the mean |Δ| is {}", found["ids"]["mean |Δ|"], most=0.01)
    report.bound("where text is read otherwise it is {} times that by ids", text / again, least=1.0)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--model", type=Path, required=True, help="a model folder of a demo run")
    options.add_argument("--questions", type=int, default=16, help="of the demo's training questions (16)")
    options.add_argument("--tokenizer", type=Path, help="folder of another model's tokenizer")
    run(measure, options)
