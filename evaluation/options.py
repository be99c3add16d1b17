"""The options shared by `run` and `chat`: model, engine, search, and settings of the rollout."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from evaluation.plugin import plugin_args
from evaluation.server_process import ENGINES, check_listening, engine_process

NOWHERE = "http://127.0.0.1:1"  # the address of a retriever that is never called


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both commands share."""

    def option(name: str, text: str, **more: Any) -> None:
        shown = f" (default: {more['default']})" if more.get("default") is not None else ""
        parser.add_argument(name, help=text + shown, **more)

    option("--model", "Hugging Face folder or name of the model that the engine serves", required=True)
    option(
        "--engine",
        "http://HOST:PORT of a running SGLang, router or demo engine; `sglang` or `demo` starts one with --model",
        required=True,
    )
    option("--engine_args", "extra arguments for the started engine, as one string", default="")
    option("--search", "local:URL of a retriever, google, or none (answer from memory)", required=True)
    option("--temperature", "0 is greedy", type=float, default=0.0)
    option(
        "--max_response_len", "maximum tokens per engine call, like --rollout-max-response-len", type=int, default=512
    )
    option("--custom_config_path", "YAML file of settings, the same as for training", type=Path)
    option(
        "--apply_chat_template_kwargs", "JSON for the chat template, like slime's option of the same name", default="{}"
    )


def search_settings(search: str) -> dict[str, Any]:
    """--search as settings of SearchConfig. Raises ValueError."""
    kind, _, url = search.partition(":")
    if kind == "local" and url:
        for one in url.split(","):  # several URLs back each other up
            check_listening("retriever", one.strip())
        return {"search_backend": "local", "retrieval_server_url": url}
    if search == "google":
        return {"search_backend": "google"}
    if search == "none":  # only an answer turn, so it never searches
        return {"search_backend": "local", "retrieval_server_url": NOWHERE, "max_turns": 0}
    raise ValueError(f"--search is {search!r}; it must be local:URL, google or none.")


@contextmanager
def running_plugin(options: argparse.Namespace, model: str, mode: str, log: Path) -> Iterator[argparse.Namespace]:
    """slime's args for these options, with the engine running. `mode` is "xml" or "chat". Raises ValueError."""
    settings = {
        **_config_file(options.custom_config_path),
        **search_settings(options.search),
        "llm_api_mode": "chat" if mode == "chat" else "generate",
    }

    def args(url: str) -> argparse.Namespace:
        return plugin_args(
            model=model,
            engine_url=url,
            settings=settings,
            temperature=options.temperature,
            max_response_len=options.max_response_len,
            template_kwargs=_json_object(options.apply_chat_template_kwargs),
        )

    if options.engine in ENGINES:
        with engine_process(options.engine, model, log, options.engine_args) as engine:
            yield args(engine.url)
    else:
        made = args(options.engine)
        check_listening("engine", options.engine)
        yield made


def absolute(model: str) -> str:
    """The absolute path of a folder; a hub name unchanged."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _config_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Cannot read {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold `key: value` lines.")
    return settings


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--apply_chat_template_kwargs is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError("--apply_chat_template_kwargs must be a JSON object.")
    return value
