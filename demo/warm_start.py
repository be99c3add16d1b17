"""Runs a few supervised steps on synthetic traces, after which the model knows the protocol but uses it badly.

A trace equals the rollout of a model that follows a question's reference solution: the same ids, the same loss mask,
and observations from the real retriever.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from demo.grpo import TrainSample, apply_gradients, batches, masked_log_probs
from demo.rollouts import sample_of
from demo.world_facts import Question
from search_rollout.engine.sglang_reply import Reply
from search_rollout.protocols.chat_template import encode
from search_rollout.runtime import Runtime
from search_rollout.search.searcher import search_all


def search_text(api_mode: str, query: str) -> str:
    """The text with which the model searches in an API mode."""
    if api_mode == "generate":
        return f"<search>{query}</search>"
    call = json.dumps({"name": "search", "arguments": {"queries": [query]}})
    return f"<tool_call>\n{call}\n</tool_call><|im_end|>"


def answer_text(api_mode: str, answer: str) -> str:
    """The text with which the model answers in an API mode."""
    return f"<answer>{answer}</answer>" + ("<|im_end|>" if api_mode == "chat" else "")


def solutions(questions: Iterable[Question]) -> Iterator[Question]:
    """The solutions for the traces: the reference ones, but every second two-search question stops after one search.

    Its answer is then what the first search found: valid in format, but wrong.
    """
    early = itertools.cycle((True, False))
    for question in questions:
        if len(question.hops) > 1 and next(early):
            yield replace(question, hops=question.hops[:1])
        else:
            yield question


async def trace(question: Question, runtime: Runtime, args: argparse.Namespace) -> TrainSample:
    """The trajectory of one solution as training data, built with the parts of real rollouts."""
    mode = runtime.config.llm_api_mode
    rollout = await runtime.begin(args, sample_of(args, runtime.tokenizer, question), {}, evaluation=False)
    trajectory = rollout.trajectory

    def model_writes(text: str) -> int:
        ids = encode(runtime.tokenizer, text)
        trajectory.append_model(Reply(ids, [0.0] * len(ids), "stop"), text)
        return ids[-1]

    thought = ""
    for hop in question.hops:
        turn = f"<think>{thought}I need the {hop.query}.</think>\n{search_text(mode, hop.query)}"
        last_id = model_writes(turn)
        action = rollout.protocol.parse(turn, think_opened=False, ended=True)
        results = await search_all(runtime.search, action.queries, lambda: False)
        if not results or results[0].error:
            raise RuntimeError(f"The retriever failed while traces were made: {results and results[0].error}")
        trajectory.append_env(rollout.protocol.observe(action, results, last_id))
        thought = f"It is {hop.found}. "
    model_writes(f"<think>{thought.strip()}</think>\n{answer_text(mode, question.hops[-1].found)}")
    return TrainSample(trajectory.ids, trajectory.loss_mask, trajectory.log_probs or [])


def supervised_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, traces: Sequence[TrainSample], dtype: torch.dtype
) -> float:
    """One cross-entropy step on the model's tokens in all traces; returns the mean loss per token."""
    model.train()
    tokens = sum(sum(sample.loss_mask) for sample in traces)
    total = 0.0
    for batch in batches(traces):
        loss = -masked_log_probs(model, batch, dtype).sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    apply_gradients(model, optimizer)
    return total


def endless(questions: Sequence[Question], choose: random.Random) -> Iterator[Question]:
    """The questions in random order, over and over."""
    while True:
        yield from choose.sample(list(questions), len(questions))
