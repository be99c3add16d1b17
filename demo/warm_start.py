"""A few supervised steps on synthetic traces, so that GRPO meets a model that knows the protocol but uses it badly.

A trace is what the rollout of a model that follows a question's reference solution would be: the same ids, the same
loss mask, and observations from the real retriever.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from demo.grpo import MAX_GRAD_NORM, TrainSample, batches, masked_log_probs
from demo.rollouts import prompt
from demo.world_facts import Question
from search_rollout.environment import Environment
from search_rollout.trajectory import Trajectory

SEARCH_THOUGHTS = ("I need the {query}.", "I should look up the {query}.", "Let me find the {query}.")
ANSWER_THOUGHTS = ("It is {found}.", "The documents say {found}.", "So the answer is {found}.")


async def trace(question: Question, environment: Environment, tokenizer: Any, choose: random.Random) -> TrainSample:
    """The trajectory of a question's reference solution, as training data."""
    prompt_ids = tokenizer.encode(prompt(tokenizer, question.text), add_special_tokens=False)
    trajectory = Trajectory(10**9, prompt_ids=prompt_ids)

    def model_writes(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        trajectory.append_model(ids, [0.0] * len(ids), text)

    for hop in question.hops:
        thought = choose.choice(SEARCH_THOUGHTS).format(query=hop.query)
        model_writes(f"<think>{thought}</think>\n<search>{hop.query}</search>")
        result = await environment.search(hop.query, lambda: False)
        if result is None or result.error:
            raise RuntimeError(f"The retriever failed while traces were made: {result and result.error}")
        trajectory.append_env(*environment.observation(result), "observation")
    answer = question.answers[0]
    model_writes(f"<think>{choose.choice(ANSWER_THOUGHTS).format(found=answer)}</think>\n<answer>{answer}</answer>")
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
