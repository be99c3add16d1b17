"""Runs the plugin outside slime: builds the args for its hooks, makes Samples of data rows, and asks one question."""

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evaluation.interruption import terminating_interrupts
from search_rollout.config import SearchConfig, load_config
from search_rollout.protocols.chat_template import render_prompt

STAND_IN = Path(__file__).resolve().parent.parent / "slime_standin"


def find_slime() -> None:
    """Makes `import slime` work: the installed slime, or else the few parts in `slime_standin`."""
    if importlib.util.find_spec("slime") is None:
        sys.path.insert(0, str(STAND_IN))


def prepare_process() -> None:
    """Sets up a command of this package: shows our warnings, hides those of transformers, and handles SIGTERM."""
    terminating_interrupts()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a --custom-config-path file. Raises ValueError."""
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} does not hold `key: value` lines")
    return settings


def plugin_args(
    *,
    model: str,
    engine_url: str,
    settings: Mapping[str, Any],
    temperature: float,
    max_response_len: int,
    template_kwargs: Mapping[str, Any] | None = None,
) -> argparse.Namespace:
    """The args that slime's command line would produce, plus `settings` as from a --custom-config-path file.

    `model` is the folder or name of the tokenizer; `max_response_len` limits one engine call, in tokens.
    Raises ValueError for an engine_url that slime's args cannot express.
    """
    host, port = _address(engine_url)
    slime_args = {
        "hf_checkpoint": model,
        "custom_generate_function_path": "generate_with_search.generate",
        "custom_rm_path": "generate_with_search.reward_func",
        "sglang_router_ip": host,
        "sglang_router_port": port,
        "sglang_server_concurrency": 256,
        "sglang_dp_size": 1,
        "rollout_num_gpus": 1,
        "rollout_num_gpus_per_engine": 1,
        "rollout_temperature": temperature,
        "rollout_top_p": 1.0,
        "rollout_top_k": -1,
        "rollout_max_response_len": max_response_len,
        "rollout_stop": None,
        "rollout_stop_token_ids": None,
        "rollout_skip_special_tokens": False,
        "apply_chat_template_kwargs": dict(template_kwargs or {}),
    }
    return argparse.Namespace(**{**settings, **slime_args})


def config_of(args: argparse.Namespace) -> SearchConfig:
    """The settings of these args and the environment, as the plugin reads them. Raises ConfigError."""
    import generate_with_search

    return load_config(generate_with_search.SEARCH_R1_CONFIGS, os.environ, args)


def sample_of_row(args: argparse.Namespace, tokenizer: Any, row: Mapping[str, Any], index: int = 0) -> Any:
    """A row of slime's prompt data as slime's Sample, by slime's own rules.

    In chat mode messages stay messages, with the row's tools in the metadata (--tool-key tools); otherwise they are
    rendered (--apply-chat-template). A prompt that is a string is unchanged.
    """
    from slime.utils.types import Sample

    prompt, metadata = row["prompt"], dict(row.get("metadata") or {})
    if args.llm_api_mode == "chat":
        if row.get("tools") is not None:
            metadata["tools"] = row["tools"]
    elif not isinstance(prompt, str):
        prompt = render_prompt(tokenizer, prompt, **args.apply_chat_template_kwargs)
    return Sample(index=index, prompt=prompt, label=row["reward_model"], metadata=metadata)


def sampling_params(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that slime builds from the args, as a copy."""
    from slime.rollout.sglang_rollout import GenerateState

    return dict(GenerateState(args).sampling_params)


async def ask(args: argparse.Namespace, sample: Any, sampling_params: dict[str, Any]) -> Any:
    """Rolls out and rewards the sample with the hooks that slime calls in training."""
    import generate_with_search

    sample = await generate_with_search.generate(args, sample, sampling_params, evaluation=True)
    if sample.reward is None:
        sample.reward = await generate_with_search.reward_func(args, sample)
    return sample


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        if parts.scheme == "http" and parts.hostname and parts.path in ("", "/"):
            return f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname, parts.port or 80
    except ValueError:  # of the port
        pass
    raise ValueError(f"The engine {url!r} is not an address of the form http://HOST:PORT.")
