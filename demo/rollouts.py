"""Rollouts of the demo: the plugin called as slime calls it, by import path, on many questions at once."""

import argparse
import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from demo.world_facts import Question
from search_rollout.chat_template import render_prompt
from search_rollout.config import SearchConfig
from search_rollout.prompts import chat_messages, xml_messages


def slime_args(
    *, model: str, engine_port: int, retriever_port: int, max_length: int, api_mode: str = "generate"
) -> argparse.Namespace:
    """What slime's command line would hold, and all settings, as a --custom-config-path file would add them.

    Every setting is given, so that none comes from the user's environment and a run means the same everywhere.
    """
    config = SearchConfig(
        llm_api_mode=api_mode,
        search_backend="local",
        retrieval_server_url=f"http://127.0.0.1:{retriever_port}",
        max_context_length=max_length,
        max_obs_tokens=200,
        answer_reserve_tokens=80,
    )
    return argparse.Namespace(
        **asdict(config),
        hf_checkpoint=model,
        custom_generate_function_path="generate_with_search.generate",
        custom_rm_path="generate_with_search.reward_func",
        sglang_router_ip="127.0.0.1",
        sglang_router_port=engine_port,
        sglang_server_concurrency=256,
        rollout_temperature=0.8,
        rollout_top_p=1.0,
        rollout_top_k=-1,
        rollout_max_response_len=80,
    )


@dataclass(frozen=True)
class Metrics:
    """Means over samples."""

    reward: float
    exact_match: float
    valid_format: float
    searches_per_question: float
    response_length: float  # tokens, observations included

    @classmethod
    def of(cls, samples: Iterable[Any]) -> "Metrics":
        """Means over slime Samples that were rewarded."""
        rows = [outcome(sample) for sample in samples]
        columns = ("reward", "exact_match", "valid_format", "searches", "response_length")
        return cls(*(sum(float(row[column]) for row in rows) / len(rows) for column in columns))

    def as_dict(self) -> dict[str, float]:
        """Rounded, for records."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def outcome(sample: Any) -> dict[str, Any]:
    """What came of one sample, in a few plain values."""
    info = sample.metadata["search_r1"]
    score = info.get("score", {})
    return {
        "id": sample.metadata["question_id"],
        "reward": sample.reward or 0.0,
        "exact_match": bool(score.get("exact_match")),
        "valid_format": bool(score.get("valid_format")),
        "searches": len(info["searches"]),
        "response_length": sample.response_length,
        "hops": sample.metadata["hops"],
    }


async def roll_out(
    args: argparse.Namespace, questions: Sequence[Question], *, samples: int, evaluation: bool, title: str
) -> list[list[Any]]:
    """`samples` rewarded slime Samples for each question; one greedy sample each in an evaluation."""
    from slime.rollout.sglang_rollout import GenerateState, generate_and_rm_group

    state = GenerateState(args)
    params = state.sampling_params | ({"temperature": 0.0} if evaluation else {})
    groups = [[sample_of(args, state.tokenizer, question, index) for index in range(samples)] for question in questions]
    with tqdm(total=len(groups), desc=title, unit="question", leave=False, disable=None) as bar:

        async def run(group: list[Any]) -> list[Any]:
            finished = await generate_and_rm_group(args, group, params, evaluation=evaluation)
            bar.update()
            return finished

        return await asyncio.gather(*map(run, groups))


def sample_of(args: argparse.Namespace, tokenizer: Any, question: Question, index: int = 0) -> Any:
    """A question as slime's Sample: messages in chat mode, else their text, as by --apply-chat-template."""
    from slime.utils.types import Sample

    chat = args.llm_api_mode == "chat"
    return Sample(
        index=index,
        prompt=chat_messages(question.text) if chat else render_prompt(tokenizer, xml_messages(question.text)),
        label={"ground_truth": {"target": list(question.answers)}},
        metadata={"question_id": question.id, "question": question.text, "hops": len(question.hops)},
    )
