"""The options that several commands share: those of a rollout, of a choice of questions, of recorded samples."""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from evaluation.plugin import plugin_args, read_settings
from evaluation.server_process import ENGINES, check_listening, engine_process
from search_rollout.arguments import whole_number

NOWHERE = "http://127.0.0.1:1"  # the address of a retriever that is never called


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `search-r1 NAME`, whose help shows `description` as it is."""
    return argparse.ArgumentParser(
        prog=f"search-r1 {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a rollout, for `running_plugin`."""
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder or name of the model that the engine serves")
    add(
        "--engine",
        required=True,
        help="http://HOST:PORT of a running SGLang, router or demo engine; `sglang` or `demo` starts one with --model",
    )
    add("--engine_args", default="", help="extra arguments for the started engine, as one string")
    add("--search", required=True, help="local:URL of a retriever, google, or none (answer from memory)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--max_response_len", type=int, default=512, help="tokens per engine call, as --rollout-max-response-len (512)")
    add("--custom_config_path", type=Path, help="YAML file of settings, the same as for training")
    add("--apply_chat_template_kwargs", default="{}", help="JSON for the chat template, like slime's own option ({})")


def add_question_options(parser: argparse.ArgumentParser, folder: str, *, per_set: int, seed: str) -> None:
    """The options of a run over question sets; `folder` and `seed` say in the help what these two are for."""
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE", help="parquet or jsonl")
    parser.add_argument("--output", type=Path, required=True, help=f"folder of this {folder}")
    parser.add_argument(
        "--mode", choices=["xml", "chat"], help="how the model searches (default: as the data was prepared)"
    )
    parser.add_argument(
        "--per_set", type=count_or_all, default=per_set, help=f"questions of each set, or `all` ({per_set})"
    )
    parser.add_argument("--limit", type=whole_number(1), help="maximum number of questions, for a first look")
    parser.add_argument("--seed", type=int, default=0, help=f"seed of {seed} (0)")
    parser.add_argument("--concurrency", type=whole_number(1), default=64, help="questions asked at the same time (64)")


def add_sample_options(parser: argparse.ArgumentParser, files: str = "", *, tokenizer: bool = True) -> None:
    """The options of a command that reads recorded samples; `files` adds to the help of the first."""
    found = "folder of a demo run or an evaluation, dumps (.pt), JSONL"
    parser.add_argument("files", nargs="+", type=Path, help=found + files)
    if tokenizer:
        parser.add_argument(
            "--tokenizer", type=Path, help="folder of the model that was rolled out (default: the run's own)"
        )
    parser.add_argument(
        "--trust-pickle", action="store_true", help="load dumps with any Python object; runs their code"
    )


def count_or_all(text: str) -> int | None:
    """A number above 0, or None for `all`."""
    return None if text == "all" else whole_number(1)(text)


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
    """slime's args for these options, with the engine running. `mode` is "xml" or "chat". Raises ValueError.

    A `model` folder becomes absolute; a hub name stays as it is. Without search there are no tools, so no chat mode.
    """
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    settings = {
        **(read_settings(options.custom_config_path) if options.custom_config_path else {}),
        **search_settings(options.search),
        "llm_api_mode": "chat" if mode == "chat" and options.search != "none" else "generate",
    }
    template_kwargs = _json_object(options.apply_chat_template_kwargs)
    with ExitStack() as stack:
        url = options.engine
        if url in ENGINES:
            url = stack.enter_context(engine_process(url, model, log, options.engine_args)).url
        args = plugin_args(
            model=model,
            engine_url=url,
            settings=settings,
            temperature=options.temperature,
            max_response_len=options.max_response_len,
            template_kwargs=template_kwargs,
        )
        check_listening("engine", url)
        yield args


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--apply_chat_template_kwargs is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError("--apply_chat_template_kwargs must be a JSON object.")
    return value
