"""Rolls out many questions at once by calling the plugin like slime does, by import path."""

import argparse
import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from demo.world_facts import Question
from evaluation.plugin import plugin_args, sample_of_row
from evaluation.terminal import Progress
from search_rollout.config import SearchConfig
from search_rollout.protocols.prompts import PromptMode, prompt_row
from search_rollout.samples.record import record_of

TEMPERATURE = 0.8  # of rollouts; evaluations are greedy
MAX_RESPONSE_LEN = 80  # tokens of one engine call

MEANS = ("reward", "exact_match", "valid_format", "searches_per_question", "response_length")

Group: TypeAlias = list[Any]  # slime's Samples of one question


def slime_args(
    *,
    model: str,
    engine_port: int,
    retriever_port: int,
    max_length: int,
    api_mode: str = "generate",
    questions: int = 1,
    seed: int | None = None,
    searches: Path | None = None,
    repeats: bool = False,
) -> argparse.Namespace:
    """The args that slime's command line would produce, plus all settings as from a --custom-config-path file.

    Every setting is given, so that none comes from the user's environment and runs are comparable. A step trains groups
    of that many `questions`. With a `seed`, every sample of a group has its own seed, and searches are stored in the
    file `searches`; if the run `repeats` another one, searches are read from that file, never from the retriever.
    """
    kept = {"search_cache": str(searches or ""), "search_cache_mode": "replay" if repeats else "readwrite"}
    args = plugin_args(
        model=model,
        engine_url=f"http://127.0.0.1:{engine_port}",
        settings=settings(api_mode, max_length) | kept | {"retrieval_server_url": f"http://127.0.0.1:{retriever_port}"},
        temperature=TEMPERATURE,
        max_response_len=MAX_RESPONSE_LEN,
    )
    args.rollout_seed = seed
    args.rollout_batch_size = questions
    args.partial_rollout = True
    return args


def settings(api_mode: str, max_length: int) -> dict[str, Any]:
    """All settings except the retriever's address."""
    config = SearchConfig(
        llm_api_mode=api_mode,
        search_backend="local",
        max_context_length=max_length,
        max_obs_tokens=200,
        answer_reserve_tokens=80,
        group_filter="reward",
    )
    return {
        key: value for key, value in asdict(config).items() if key not in ("google_api_key", "retrieval_server_url")
    }


def means(samples: Iterable[Any]) -> dict[str, float]:
    """Means over rewarded slime Samples, by their names in steps.jsonl and summary.json."""
    rows = [outcome(sample) for sample in samples]
    return {name: fmean(row[name.removesuffix("_per_question")] for row in rows) for name in MEANS}


def outcome(sample: Any) -> dict[str, Any]:
    """The outcome of one sample in a few plain values; `response_length` counts the tokens of observations too."""
    record = record_of(sample)
    assert record is not None  # ours
    score = record.score or {}
    return {
        "id": sample.metadata["question_id"],
        "reward": sample.reward or 0.0,
        "exact_match": bool(score.get("exact_match")),
        "valid_format": bool(score.get("valid_format")),
        "searches": len(record.searches),
        "response_length": sample.response_length,
        "hops": sample.metadata["hops"],
    }


async def roll_out(
    args: argparse.Namespace, questions: Sequence[Question], *, samples: int, evaluation: bool, title: str
) -> list[Group]:
    """`samples` rewarded slime Samples for each question; one greedy sample each in an evaluation."""
    groups = [group_of(args, question, samples, number) for number, question in enumerate(questions)]
    with Progress(title, len(groups), "questions") as progress:

        async def run(group: Group) -> Group:
            finished = await roll_out_group(args, group, evaluation=evaluation)
            progress.update()
            return finished

        return await asyncio.gather(*map(run, groups))


def group_of(args: argparse.Namespace, question: Question, samples: int, number: int) -> Group:
    """Samples of a question that are not rolled out yet."""
    from slime.rollout.sglang_rollout import GenerateState

    tokenizer = GenerateState(args).tokenizer
    group = [sample_of(args, tokenizer, question, index) for index in range(samples)]
    for sample in group:
        sample.group_index = number
    return group


async def roll_out_group(args: argparse.Namespace, group: Group, *, evaluation: bool = False) -> Group:
    """Rolls out and rewards those samples of a group that are not finished yet; greedily in an evaluation."""
    from slime.rollout.sglang_rollout import GenerateState, generate_and_rm

    params = GenerateState(args).sampling_params | ({"temperature": 0.0} if evaluation else {})

    async def finish(sample: Any) -> Any:
        if sample.reward is not None:
            return sample
        given = params | _seed_of(args, sample, len(group))
        return await generate_and_rm(args, sample, given, evaluation=evaluation)

    return await asyncio.gather(*map(finish, group))


def _seed_of(args: argparse.Namespace, sample: Any, samples: int) -> dict[str, int]:
    """slime's parameter for deterministic inference, with a seed that is unique within the step, not only the group.

    So all requests of a step can be distinguished, even if it asks a question twice.
    """
    if args.rollout_seed is None:
        return {}
    return {"sampling_seed": args.rollout_seed + sample.group_index * samples + sample.index}


def row_of(question: Question, api_mode: str) -> dict[str, Any]:
    """A question as a row of slime's prompt data."""
    extra = {"question_id": question.id, "hops": len(question.hops)}
    mode: PromptMode = "chat" if api_mode == "chat" else "generate"
    return prompt_row(question.text, question.answers, "demo", mode=mode, extra=extra)


def evaluation_rows(questions: Iterable[Question], api_mode: str, corpus: Path) -> Iterator[dict[str, Any]]:
    """Rows of held-out questions with the passages that answer them, for `search-r1 exam`."""
    passages = map(json.loads, corpus.read_text(encoding="utf-8").splitlines())
    contents = {passage["id"]: passage["contents"] for passage in passages}
    for question in questions:
        row = row_of(question, api_mode)
        row["metadata"]["gold_passages"] = [contents[hop.passage_id] for hop in question.hops]
        yield row


def sample_of(args: argparse.Namespace, tokenizer: Any, question: Question, index: int = 0) -> Any:
    """A question as the Sample that slime would make of its row."""
    return sample_of_row(args, tokenizer, row_of(question, args.llm_api_mode), index)
