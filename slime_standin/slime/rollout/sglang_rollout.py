"""How slime calls a plugin: one sample, then its reward, under one semaphore."""

import asyncio
import inspect
from typing import Any

from transformers import AutoTokenizer

from slime.utils.misc import SingletonMeta, load_function
from slime.utils.types import Sample


class GenerateState(metaclass=SingletonMeta):
    """What all rollouts of the process share."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.tokenizer = AutoTokenizer.from_pretrained(args.hf_checkpoint)
        self.semaphore = asyncio.Semaphore(args.sglang_server_concurrency)
        self.sampling_params = {
            "temperature": args.rollout_temperature,
            "top_p": args.rollout_top_p,
            "top_k": args.rollout_top_k,
            "max_new_tokens": args.rollout_max_response_len,
            "stop": None,
            "stop_token_ids": None,
            "skip_special_tokens": False,
            "no_stop_trim": True,
            "spaces_between_special_tokens": False,
        }
        self.aborted = False


async def generate_and_rm(args: Any, sample: Sample, sampling_params: dict, evaluation: bool = False) -> Sample:
    """Generates one sample by the custom function, then rewards it unless it was aborted or has its reward."""
    state = GenerateState(args)
    async with state.semaphore:
        if state.aborted:
            sample.status = Sample.Status.ABORTED
            return sample
        generate = load_function(args.custom_generate_function_path)
        if "evaluation" in inspect.signature(generate).parameters:
            sample = await generate(args, sample, sampling_params, evaluation=evaluation)
        else:
            sample = await generate(args, sample, sampling_params)
    if sample.status != Sample.Status.ABORTED and sample.reward is None:
        sample.reward = await load_function(args.custom_rm_path)(args, sample)
    return sample
