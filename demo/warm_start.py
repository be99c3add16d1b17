"""A few supervised steps on synthetic traces, so that GRPO meets a model that knows the protocol but uses it badly.

A trace is what the rollout of a model that follows a question's reference solution would be: the same ids, the same
loss mask, and observations from the real retriever.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from demo.grpo import MAX_GRAD_NORM, TrainSample, batches, masked_log_probs
from demo.rollouts import prompt
from demo.world_facts import Question
from search_rollout.environment import Environment
from search_rollout.trajectory import Trajectory


def solutions(questions: Iterable[Question]) -> Iterator[Question]:
    """What the traces show: the reference solutions, but every second two-search question stops after one search.

    Its answer is then what that search found: a valid reply, and wrong.
    """
    early = itertools.cycle((True, False))
    for question in questions:
        if len(question.hops) > 1 and next(early):
            yield replace(question, hops=question.hops[:1])
        else:
            yield question


async def trace(question: Question, environment: Environment, tokenizer: Any) -> TrainSample:
    """The trajectory of one solution, as training data."""
    prompt_ids = tokenizer.encode(prompt(tokenizer, question.text), add_special_tokens=False)
    trajectory = Trajectory(10**9, prompt_ids=prompt_ids)

    def model_writes(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        trajectory.append_model(ids, [0.0] * len(ids), text)

    thought = ""
    for hop in question.hops:
        model_writes(f"<think>{thought}I need the {hop.query}.</think>\n<search>{hop.query}</search>")
        result = await environment.search(hop.query, lambda: False)
        if result is None or result.error:
            raise RuntimeError(f"The retriever failed while traces were made: {result and result.error}")
        trajectory.append_env(*environment.observation(result), "observation")
        thought = f"It is {hop.found}. "
    model_writes(f"<think>{thought.strip()}</think>\n<answer>{question.hops[-1].found}</answer>")
    return TrainSample(trajectory.ids, trajectory.loss_mask, trajectory.log_probs or [])


def supervised_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, traces: Sequence[TrainSample], dtype: torch.dtype
) -> float:
    """One step of cross-entropy on the model's tokens of all traces; returns the mean loss of a token."""
    model.train()
    tokens = sum(sum(sample.loss_mask) for sample in traces)
    total = 0.0
    for batch in batches(traces):
        loss = -masked_log_probs(model, batch, dtype).sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def endless(questions: Sequence[Question], choose: random.Random) -> Iterator[Question]:
    """The questions in random order, over and over."""
    while True:
        yield from choose.sample(list(questions), len(questions))
