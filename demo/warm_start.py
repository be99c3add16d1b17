"""A few supervised steps on synthetic traces: they teach the protocol, and two ways of using it.

A careful trace is what a rollout would be that follows the question's reference solution: the same ids, the same loss
mask, observations from the real retriever. A guessing trace answers at once, from nothing. Questions that begin with
"Which" get guessing traces, all others careful ones; so the model knows both ways, uses the wrong one for a third of
the questions, and GRPO has to find out that searching pays there too.
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
GUESS_THOUGHT = "This is well known."
GUESSED_WORD = "Which"
ANSWER_THOUGHTS = ("It is {found}.", "The documents say {found}.", "So the answer is {found}.")


def guess(question: Question, questions: Sequence[Question], choose: random.Random) -> str | None:
    """An answer to some question of the same kind, for a guessing trace; None for a careful one."""
    if not question.text.startswith(GUESSED_WORD):
        return None
    kind = _kind(question)
    return choose.choice([other for other in questions if _kind(other) == kind]).answers[0]


def _kind(question: Question) -> str:
    return question.hops[-1].passage_id.partition("-")[0]  # the relation that its answer stands in


async def trace(
    question: Question, guessed: str | None, environment: Environment, tokenizer: Any, choose: random.Random
) -> TrainSample:
    """A trajectory that answers `guessed` at once, or follows the reference solution, as training data."""
    prompt_ids = tokenizer.encode(prompt(tokenizer, question.text), add_special_tokens=False)
    trajectory = Trajectory(10**9, prompt_ids=prompt_ids)

    def model_writes(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        trajectory.append_model(ids, [0.0] * len(ids), text)

    for hop in question.hops if guessed is None else ():
        thought = choose.choice(SEARCH_THOUGHTS).format(query=hop.query)
        model_writes(f"<think>{thought}</think>\n<search>{hop.query}</search>")
        result = await environment.search(hop.query, lambda: False)
        if result is None or result.error:
            raise RuntimeError(f"The retriever failed while traces were made: {result and result.error}")
        trajectory.append_env(*environment.observation(result), "observation")
    answer = guessed or question.answers[0]
    thought = GUESS_THOUGHT if guessed else choose.choice(ANSWER_THOUGHTS).format(found=answer)
    model_writes(f"<think>{thought}</think>\n<answer>{answer}</answer>")
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
