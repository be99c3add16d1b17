"""The phases of a training run: a look at the untrained model, warm start, evaluation, GRPO, evaluation."""

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from demo import checkpoint, kept_steps
from demo.engine import Engine
from demo.group_sampling import GroupSampling
from demo.grpo import TrainSample, group_advantages, train_step
from demo.models import keep_tokenizer
from demo.report import write_report
from demo.rollouts import MEANS, Group, means, outcome, roll_out
from demo.run_folder import RunFolder, paired_gain
from demo.warm_start import endless, solutions, supervised_step, trace
from demo.world_facts import Question
from evaluation.terminal import Progress, clock, short
from evaluation.view import write_page
from search_rollout.config import load_config
from search_rollout.metrics import rollout_metrics
from search_rollout.runtime import Runtime, engine_url

TRACES_PER_WARM_STEP = 8
EVALUATION_RESERVE = 1.6  # the last evaluation takes longer than the first, because the model searches more
SHOWN_EVERY = 4  # every so many GRPO steps, trajectories are saved for the report
CHECKPOINT_EVERY_S = 120.0  # during GRPO; writing one takes seconds
PHASES = 5  # set-up, which is train.py's, and the four of `_phases`
WARM_STEP_S, QUESTION_S = 5.5, 0.4  # on two idle cores (docs/DEMO.md); used only for the announced times


@dataclass
class TrainingRun:
    """One run on a running engine and retriever; writes its results into its folder."""

    args: argparse.Namespace
    plugin: argparse.Namespace  # slime's args for the plugin
    folder: RunFolder
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    train: Sequence[Question]
    held_out: Sequence[Question]
    started: float  # by time.monotonic()

    def __post_init__(self) -> None:
        args = self.args
        self.dtype = getattr(torch, args.dtype)
        # Both phases share the optimiser: without its second moments the first GRPO steps would depend on signs alone.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.warm_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        torch.manual_seed(args.seed)
        self.progress = self._resumed() or checkpoint.Progress(self._first_summary())
        self.summary = self.progress.summary
        self.deltas: list[float] = []  # |train - rollout log-probability| of each step of this process
        self.started -= self.progress.seconds
        # A resumed run skips the questions that it has already used.
        in_order = endless(self.train, random.Random(args.seed))
        self.questions = itertools.islice(in_order, self.progress.questions, None)
        self.sampling = GroupSampling(
            self.plugin, self._next_question, self.engine.abort, samples=args.samples, at_a_time=args.over_sampling
        )
        if self.progress.warm_started:
            self.engine.load_weights(self.model, f"step {self.summary['steps']}")

    def _resumed(self) -> checkpoint.Progress | None:
        progress = checkpoint.load(self.folder.path, self.model, self.optimizer)
        self.folder.truncate_logs(progress.log_sizes if progress else {})
        return progress

    def _first_summary(self) -> dict[str, Any]:
        return {
            "seed": self.args.seed,
            "model": self.args.model.resolve().name if self.args.model else "SmolLM2-135M-Instruct",
            "minutes": self.args.minutes,
            "dtype": self.args.dtype,
            "steps": 0,
            "started": time.strftime("%Y-%m-%d %H:%M"),
            "arguments": self.args.arguments,  # the command line, for --resume
            "config": {key: str(value) for key, value in vars(self.args).items() if key != "arguments"},
        }

    def run(self) -> bool:
        """Runs all phases; returns False if interrupted. The summary and the report are written in both cases."""
        finished = True
        ending = "error"
        self._write_report("running")
        try:
            with asyncio.Runner() as runner:
                ending = runner.run(self._phases())
            checkpoint.delete(self.folder.path)
        except KeyboardInterrupt:
            finished = False
            ending = "interrupted"
            print("\ninterrupted: the report covers everything up to here", flush=True)
        finally:
            self._write_viewer_page()
            self._write_report(ending)
            print(f"report: {short(self.folder.path / 'report.html')}", flush=True)
        return finished

    def _write_viewer_page(self) -> None:
        """Writes the page of `search-r1 view` for all recorded trajectories; the report links to it."""
        log = self.folder.path / "trajectories.jsonl"
        if log.is_file() and log.stat().st_size:
            write_page([log], self.tokenizer, log.with_suffix(".html"))

    def _write_report(self, stopped: str) -> None:
        """Writes the current summary and report; `stopped` is "running", or why the run ended."""
        self.summary["stopped"] = stopped
        self.summary["seconds"] = round(time.monotonic() - self.started, 1)
        self.folder.write_summary(self.summary)
        write_report(self.folder.path)

    async def _phases(self) -> str:
        """Runs all unfinished phases; returns why GRPO ended."""
        import generate_with_search

        done = self.progress
        try:
            if not done.warm_started:
                warm_s = self.args.warm_start_steps * WARM_STEP_S
                self._announce(2, f"warm start, {self.args.warm_start_steps} supervised steps", warm_s)
                await self._look_at_untrained()
                await self._warm_start()
                done.warm_started = True
                self._save_model("before")
                self._checkpoint()
            if not done.before:
                asked = len(self.held_out)
                self._announce(3, f"evaluation before GRPO, {asked} held-out questions", asked * QUESTION_S)
                done.before, done.evaluation_s = await self._evaluate("before")
                self._checkpoint()
                print(
                    f"report so far: {short(self.folder.path / 'report.html')}, rewritten after each step", flush=True
                )
            limit = "GRPO, as many steps as time allows" if self.args.steps is None else "GRPO"
            self._announce(4, limit, self._seconds_left())
            print(
                f"each question is asked {self.args.samples} times; GRPO learns only from questions whose samples got "
                "different rewards, and `groups` counts them, of all questions asked",
                flush=True,
            )
            ending = await self._grpo()
            self._save_model("after")
            self._announce(5, "evaluation after GRPO, the same questions", done.evaluation_s)
            after, _ = await self._evaluate("after")
            self.summary["gain"] = paired_gain(done.before, after)
            self._print_comparison()
            return ending
        finally:
            await generate_with_search.close()

    def _announce(self, phase: int, what: str, seconds: float) -> None:
        about = f"about {max(1, round(seconds / 60))} min" if seconds > 30 else "less than a minute"
        print(f"[demo] phase {phase} of {PHASES}: {what}, {about}", flush=True)

    def _checkpoint(self) -> None:
        """Saves the point from which `--resume` continues."""
        self.progress.seconds = time.monotonic() - self.started
        self.progress.log_sizes = self.folder.log_sizes()
        checkpoint.save(self.folder.path, self.progress, self.model, self.optimizer)
        self._write_report("running")

    def _next_question(self) -> Question:
        self.progress.questions += 1
        return next(self.questions)

    def _save_model(self, phase: str) -> None:
        """Saves the current model with the rollouts' tokenizer, for `demo.serve` and `evaluation`."""
        if self.args.save_models:
            self.model.save_pretrained(self.folder.path / phase)
            keep_tokenizer(self.plugin.hf_checkpoint, self.folder.path / phase)

    async def _look_at_untrained(self) -> None:
        """Prints a rollout of the untrained model, which does not know the protocol."""
        groups = await roll_out(self.plugin, self.train[:4], samples=1, evaluation=True, title="untrained")
        for (sample,) in groups:
            self.folder.append_trajectory("untrained", sample, self.tokenizer)
        self._show("the untrained model", groups[0][0])

    async def _warm_start(self) -> None:
        from slime.rollout.sglang_rollout import GenerateState

        runtime = Runtime(engine_url(self.plugin), load_config({}, {}, self.plugin), GenerateState(self.plugin))
        try:
            shown = solutions(iter(self._next_question, None))
            with Progress("warm start", self.args.warm_start_steps, "steps") as progress:
                for step in range(1, self.args.warm_start_steps + 1):
                    began = time.monotonic()
                    self._set_learning_rate((step - 1) / self.args.warm_start_steps)
                    traces = [await trace(next(shown), runtime, self.plugin) for _ in range(TRACES_PER_WARM_STEP)]
                    loss = supervised_step(self.model, self.optimizer, traces, self.dtype)
                    progress.update(note=f"loss {loss:.3f}")
                    record = {"step": step, "loss": round(loss, 4), "seconds": round(time.monotonic() - began, 1)}
                    self.folder.append("warm_start.jsonl", record)
        finally:
            await runtime.close()
        self.engine.load_weights(self.model, "warm start")
        print(f"warm start: {self.args.warm_start_steps} steps, loss {loss:.3f}, {self._clock()}", flush=True)

    def _set_learning_rate(self, progress: float) -> None:
        """Interpolates linearly from the warm start's rate (progress 0) to GRPO's (1)."""
        rate = self.args.warm_learning_rate + progress * (self.args.learning_rate - self.args.warm_learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    async def _evaluate(self, phase: str) -> tuple[list[bool], float]:
        """Greedy exact match on the held-out questions, question by question, and the seconds it took."""
        began = time.monotonic()
        groups = await roll_out(self.plugin, self.held_out, samples=1, evaluation=True, title=f"evaluation {phase}")
        samples = [group[0] for group in groups]
        for sample in samples:
            self.folder.append("evaluation.jsonl", {"phase": phase, **outcome(sample)})
            self.folder.append_trajectory(phase, sample, self.tokenizer)
        outcomes = [outcome(sample) for sample in samples]
        by_hops = {
            str(hops): round(fmean(row["exact_match"] for row in outcomes if row["hops"] == hops), 4)
            for hops in sorted({row["hops"] for row in outcomes})
        }
        figures = means(samples)
        self.summary[phase] = {**_rounded(figures, 4), "questions": len(samples), "by_hops": by_hops}
        print(
            f"{phase} GRPO: exact match {figures['exact_match']:.3f}, valid format {figures['valid_format']:.3f}, "
            f"{figures['searches_per_question']:.2f} searches per question on {len(samples)} held-out questions, "
            f"{self._clock()}",
            flush=True,
        )
        self._show(f"a held-out question {phase} GRPO", samples[0])
        return [row["exact_match"] for row in outcomes], time.monotonic() - began

    def _seconds_left(self) -> float:
        """Until the last evaluation should begin."""
        end = self.started + self.args.minutes * 60 - self.progress.evaluation_s * EVALUATION_RESERVE
        return end - time.monotonic()

    async def _grpo(self) -> str:
        """Runs GRPO steps until the steps or the time run out; returns which: "steps" or "time"."""
        self._set_learning_rate(1.0)
        done, saved = self.progress, time.monotonic()
        while self.args.steps is None or self.summary["steps"] < self.args.steps:
            step = self.summary["steps"] + 1
            if step > 1 and self._seconds_left() < done.longest_step_s:
                return "time"
            began = time.monotonic()
            figures = await self._grpo_step(step)
            seconds = time.monotonic() - began
            done.longest_step_s = max(done.longest_step_s, seconds)
            self.summary["steps"] = step
            self._record_step(figures, seconds)
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                self._checkpoint()
                saved = time.monotonic()
            self._write_report("running")
        return "steps"

    async def _grpo_step(self, step: int) -> dict[str, Any]:
        """Rollouts, advantages, one optimiser step, new engine weights.

        Returns the step's figures by their names in steps.jsonl; without a group to train, not those of StepResult.
        """
        title, began = f"step {step} rollouts", time.monotonic()
        if self.args.keep_steps:
            kept = await self._repeatable_groups(step, title)
            dropped: list[Group] = []
        else:
            kept, dropped = await self.sampling.step(self.args.questions_per_step, title)
        groups = kept + dropped
        rollout_s = time.monotonic() - began
        if step == 1 or step % SHOWN_EVERY == 0:
            for sample in groups[0][:2]:
                self.folder.append_trajectory(f"step {step}", sample, self.tokenizer)
        # Dropped groups are left out: they vary at most by a discarded sample.
        trained = [samples for group in kept if (samples := _to_train(group))]
        figures = {
            "step": step,
            **_rounded(rollout_metrics(groups) | {"rollout_seconds": rollout_s}, 5),
            **means(sample for group in groups for sample in group),
            "groups": len(groups),
            "groups_trained": len(trained),
        }
        if trained:
            batch = [sample for samples in trained for sample in samples]
            result = train_step(self.model, self.optimizer, batch, self.dtype, self.plugin.rollout_temperature)
            self.engine.load_weights(self.model, str(step))
            figures |= asdict(result)
        return figures

    async def _repeatable_groups(self, step: int, title: str) -> list[Group]:
        """Groups that depend on nothing outside the step, kept for `search-r1 replay`."""
        questions = [self._next_question() for _ in range(self.args.questions_per_step)]
        order = self.engine.begin_step()
        groups = await roll_out(self.plugin, questions, samples=self.args.samples, evaluation=False, title=title)
        facts = {name: getattr(self.args, name) for name in ("seed", "samples", "dtype", "api_mode")}
        facts |= {"weight_version": self.engine.weight_version, "order": order.recorded}
        kept_steps.keep(self.folder.path, step, self.model, questions, groups, facts)  # the model of these rollouts
        return groups

    def _record_step(self, figures: dict[str, Any], seconds: float) -> None:
        delta = "-"
        if "abs_delta_logprob" in figures:
            delta = f"{figures['abs_delta_logprob']:.5f}"
            self.deltas.append(figures["abs_delta_logprob"])
            self.summary["mean_abs_delta_logprob"] = float(f"{fmean(self.deltas):.3g}")
        rounded = _rounded({name: figures[name] for name in MEANS}, 4)
        self.folder.append("steps.jsonl", {**figures, **rounded, "seconds": round(seconds, 1)})
        print(
            f"step {figures['step']:2d}  reward {figures['reward']:.3f}  exact match {figures['exact_match']:.3f}  "
            f"valid format {figures['valid_format']:.3f}  searches {figures['searches_per_question']:.2f}  "
            f"length {figures['response_length']:.0f}  |train-rollout logprob| {delta}  "
            f"groups {figures['groups_trained']}/{figures['groups']}  {seconds:.0f} s  {self._clock()}",
            flush=True,
        )

    def _clock(self) -> str:
        return clock(time.monotonic() - self.started)

    def _show(self, title: str, sample: Any) -> None:
        """Prints one trajectory."""
        text = sample.response.strip().replace("\n", "\n  | ")
        print(
            f"\n  {title}: {sample.metadata['question']}\n  | {text}\n"
            f"  reward {sample.reward}, {sample.metadata['search_r1']['stop_reason']}\n",
            flush=True,
        )

    def _print_comparison(self) -> None:
        before, after, gain = (self.summary[key] for key in ("before", "after", "gain"))
        print(f"\nheld-out questions ({before['questions']})    before    after")
        for key, title in (
            ("exact_match", "exact match"),
            ("valid_format", "valid format"),
            ("searches_per_question", "searches per question"),
        ):
            print(f"{title:28s}{before[key]:8.3f} {after[key]:8.3f}")
        for hops in before["by_hops"]:
            title = f"exact match, {hops} search" + ("es" if hops != "1" else "")
            print(f"{title:28s}{before['by_hops'][hops]:8.3f} {after['by_hops'][hops]:8.3f}")
        low, high = gain["ci95"]
        print(f"gain in exact match {gain['exact_match']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}\n", flush=True)


def _to_train(group: Group) -> list[TrainSample]:
    """A group's samples with their advantages; empty if all rewards are equal."""
    advantages = group_advantages([sample.reward for sample in group])
    if advantages is None:
        return []
    return [
        TrainSample(sample.tokens, sample.loss_mask, sample.rollout_log_probs, advantage)
        for sample, advantage in zip(group, advantages, strict=True)
        if any(sample.loss_mask)  # a discarded sample has nothing to train
    ]


def _rounded(figures: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in figures.items()}
