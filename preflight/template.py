"""Checks of the chat template: that it is there, knows tools, and that turns can be appended to what it renders."""

from pathlib import Path
from typing import Any

from preflight.checkpoint_files import BadFile, read_json
from preflight.findings import Blocked, Finding, doubtful, fine, one_line, skipped, wrong
from preflight.setup import Setup
from search_rollout.protocols.chat_template import decode, encode, next_turn_ids, render_prompt
from search_rollout.protocols.prompts import SEARCH_TOOL, chat_messages, xml_messages
from search_rollout.protocols.tool_formats import FORMATS, tool_format

OTHER_MODEL = "use a model whose template does, such as Qwen2.5-3B-Instruct"
MARK = "a text that stands nowhere else"


def chat_template(setup: Setup) -> Finding:
    if not _is_used(setup):
        return skipped("prompts are whole texts: APPLY_CHAT_TEMPLATE=0")
    if not setup.tokenizer.chat_template:
        return wrong(
            f"{setup['HF_CHECKPOINT']} has no chat template",
            "use the Instruct version of the model; a base model takes data of "
            "`oai_format_data_preprocess.py --format text`, with APPLY_CHAT_TEMPLATE=0",
        )
    try:
        text = _render(setup)
    except Exception as error:  # templates raise what they like
        return wrong(f"the chat template does not take a prompt of ours: {one_line(error)}", OTHER_MODEL)
    return fine(f"makes {len(encode(setup.tokenizer, text))} tokens of a prompt of ours")


def tools(setup: Setup) -> Finding:
    if setup.config.llm_api_mode != "chat":
        return skipped("generate mode has none")
    _require_template(setup)
    if SEARCH_TOOL["function"]["description"] not in _render(setup):
        return wrong("the chat template leaves out the tools, so the model is not told of them", OTHER_MODEL)
    try:
        form = tool_format(setup.tokenizer, setup.config.tool_call_format)
    except ValueError:
        return wrong(
            "the chat template shows no way of writing tool calls that is known here",
            f"use such a model, or name its way: SEARCH_R1_TOOL_CALL_FORMAT={' or '.join(FORMATS)}",
        )
    return fine(f"shown to the model; calls are read as {type(form).__name__}'s")


def appending(setup: Setup) -> Finding:
    """What follows a turn must not depend on what was before: only then is it right behind the ids of the engine."""
    _require_template(setup)
    role = "tool" if setup.config.llm_api_mode == "chat" else "user"
    message = {"role": role, "content": MARK}
    try:
        after = _text_after_turn(setup, [message])
        shown = render_prompt(
            setup.tokenizer,
            [*_messages(setup), {"role": "assistant", "content": "I look it up."}, message],
            _tools(setup),
            **setup.template_kwargs,
        )
    except Exception as error:
        return wrong(f"the chat template cannot append a {role} message: {one_line(error)}", OTHER_MODEL)
    if MARK not in after:
        return wrong(f"the chat template leaves out the content of a {role} message", OTHER_MODEL)
    if not shown.endswith(after):
        return wrong(
            f"the chat template writes a {role} message in another way if more was said before: turns cannot be "
            "appended to what the engine sampled",
            OTHER_MODEL,
        )
    return fine(f"a {role} message is written in the same way whatever stands before it")


def end_of_turn(setup: Setup) -> Finding:
    _require_template(setup)
    tokenizer = setup.tokenizer
    try:
        ids = encode(tokenizer, _text_after_turn(setup, [{"role": "user", "content": MARK}]))
    except Exception as error:
        raise Blocked("turns cannot be appended") from error
    end, stops = ids[0], _stop_ids(setup)
    name = f"{decode(tokenizer, [end])!r} ({end})"
    if end in stops:
        return fine(f"{name} ends a turn, and the engine stops there")
    listed = ", ".join(f"{decode(tokenizer, [stop])!r} ({stop})" for stop in sorted(stops))
    return wrong(
        f"the chat template ends a turn with {name}, and the engine stops at {listed or 'nothing'} only: "
        "a turn would go on to the limit",
        f"add {end} to eos_token_id in {Path(setup['HF_CHECKPOINT']) / 'generation_config.json'}, or use the Instruct "
        "version of the model",
    )


def thinking(setup: Setup) -> Finding:
    _require_template(setup)
    if _render(setup).rstrip().endswith("</think>"):
        return doubtful(
            "the chat template thinks for the model: prompts end in an empty <think></think>",
            "give enable_thinking: true in apply_chat_template_kwargs (CUSTOM_CONFIG_PATH)",
        )
    return fine("prompts leave the thinking to the model")


def _is_used(setup: Setup) -> bool:
    return setup.config.llm_api_mode == "chat" or setup.is_on("APPLY_CHAT_TEMPLATE")


def _require_template(setup: Setup) -> None:
    if not _is_used(setup):
        raise Blocked("prompts are whole texts: APPLY_CHAT_TEMPLATE=0")
    if not setup.tokenizer.chat_template:
        raise Blocked("there is no chat template")


def _messages(setup: Setup) -> list[dict[str, str]]:
    make = chat_messages if setup.config.llm_api_mode == "chat" else xml_messages
    return make("Who wrote Hamlet?")


def _tools(setup: Setup) -> list[dict[str, Any]]:
    return [SEARCH_TOOL] if setup.config.llm_api_mode == "chat" else []


def _render(setup: Setup) -> str:
    return render_prompt(setup.tokenizer, _messages(setup), _tools(setup), **setup.template_kwargs)


def _text_after_turn(setup: Setup, messages: list[dict[str, str]]) -> str:
    """What the plugin appends behind an assistant's words, with the end of that turn."""
    return decode(setup.tokenizer, next_turn_ids(setup.tokenizer, messages, None, **setup.template_kwargs))


def _stop_ids(setup: Setup) -> set[int]:
    """Where SGLang ends a turn by itself."""
    found: set[Any] = {setup.tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        try:
            ids = read_json(Path(setup["HF_CHECKPOINT"]) / name).get("eos_token_id")
        except BadFile:
            continue  # generation_config.json need not be there; config.json has a row of its own
        found |= set(ids) if isinstance(ids, list) else {ids}
    return found - {None}


CHECKS = (chat_template, tools, appending, end_of_turn, thinking)
