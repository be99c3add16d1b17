"""Checks that the chat template exists, teaches readable tool calls, and allows appending turns."""

from pathlib import Path
from typing import Any

from preflight.checkpoint_files import BadFile, read_json
from preflight.findings import Blocked, Finding, doubtful, fine, one_line, skipped, wrong
from preflight.setup import Setup
from search_rollout.protocols.chat_template import check_appending, decode, encode, next_turn_ids, render_prompt
from search_rollout.protocols.prompts import SEARCH_TOOL, chat_messages, xml_messages
from search_rollout.protocols.tool_formats import REMEDY, fits, tool_format

OTHER_MODEL = "use a model whose template does, such as Qwen2.5-3B-Instruct"
MARK = "a text that occurs nowhere else"


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
    except Exception as error:  # templates may raise anything
        return wrong(f"the chat template refuses our prompt: {one_line(error)}", OTHER_MODEL)
    ids = encode(setup.tokenizer, text)
    if (read := decode(setup.tokenizer, ids)) != text:
        return wrong(
            f"the tokenizer changes our prompt: {_difference(text, read)}",
            "use the tokenizer that came with the model: this one does not decode to the text that it encoded",
        )
    return fine(f"renders our prompt in {len(ids)} tokens")


def tools(setup: Setup) -> Finding:
    if setup.config.llm_api_mode != "chat":
        return skipped("generate mode has none")
    _require_template(setup)
    if SEARCH_TOOL["function"]["description"] not in _render(setup):
        return wrong("the chat template leaves out the tools, so the model never sees them", OTHER_MODEL)
    try:
        check_appending(setup.tokenizer, _role(setup), **setup.template_kwargs)
    except ValueError as error:
        raise Blocked("tool messages cannot be appended") from error
    name = setup.config.tool_call_format
    try:
        form = tool_format(setup.tokenizer, name)
    except ValueError as error:
        return wrong(one_line(error).removesuffix(REMEDY).strip(), REMEDY)
    if not fits(setup.tokenizer, form):
        return wrong(f"the chat template writes tool calls that {name} does not read", "set tool_call_format to auto")
    return fine(f"shown to the model; calls are read as {form.name}")


def appending(setup: Setup) -> Finding:
    """The text after a turn must not depend on earlier turns; only then can it be appended to the engine's ids."""
    _require_template(setup)
    role = _role(setup)
    message = {"role": role, "content": MARK} | ({"tool_call_id": "call00000"} if role == "tool" else {})
    try:
        check_appending(setup.tokenizer, role, **setup.template_kwargs)
        after = _text_after_turn(setup, [message])
        shown = render_prompt(
            setup.tokenizer,
            [*_messages(setup), {"role": "assistant", "content": "I look it up."}, message],
            _tools(setup),
            **setup.template_kwargs,
        )
    except Exception as error:
        return wrong(one_line(error), OTHER_MODEL)
    if not shown.endswith(after):
        found = f"the chat template writes a {role} message differently after a longer conversation"
        return wrong(f"{found}: turns cannot be appended to what the engine sampled", OTHER_MODEL)
    return fine(f"a {role} message is written the same way whatever precedes it")


def end_of_turn(setup: Setup) -> Finding:
    _require_template(setup)
    tokenizer = setup.tokenizer
    try:
        ids = encode(tokenizer, _text_after_turn(setup, [{"role": _role(setup), "content": MARK}]))
    except Exception as error:
        raise Blocked("turns cannot be appended") from error
    end, stops = ids[0], _stop_ids(setup)
    name = f"{decode(tokenizer, [end])!r} ({end})"
    if end in stops:
        return fine(f"{name} ends a turn, and the engine stops there")
    listed = ", ".join(f"{decode(tokenizer, [stop])!r} ({stop})" for stop in sorted(stops))
    return wrong(
        f"the chat template ends a turn with {name}, but the engine stops only at {listed or 'nothing'}: "
        "every turn would run to its length limit",
        f"add {end} to eos_token_id in {Path(setup['HF_CHECKPOINT']) / 'generation_config.json'}, or use the Instruct "
        "version of the model",
    )


def thinking(setup: Setup) -> Finding:
    _require_template(setup)
    if _render(setup).rstrip().endswith("</think>"):
        return doubtful(
            "the chat template turns thinking off: prompts end in an empty <think></think>",
            "set enable_thinking: true in apply_chat_template_kwargs (CUSTOM_CONFIG_PATH)",
        )
    return fine("prompts do not turn thinking off")


def _is_used(setup: Setup) -> bool:
    return setup.config.llm_api_mode == "chat" or setup.is_on("APPLY_CHAT_TEMPLATE")


def _require_template(setup: Setup) -> None:
    if not _is_used(setup):
        raise Blocked("prompts are whole texts: APPLY_CHAT_TEMPLATE=0")
    if not setup.tokenizer.chat_template:
        raise Blocked("there is no chat template")


def _role(setup: Setup) -> str:
    """The role of the messages that answer a model's turn."""
    return "tool" if setup.config.llm_api_mode == "chat" else "user"


def _difference(text: str, read: str) -> str:
    """The first difference between a text and its encoded and decoded form."""
    place = next((n for n, pair in enumerate(zip(text, read, strict=False)) if pair[0] != pair[1]), len(read))
    return f"{text[place : place + 30]!r} is read back as {read[place : place + 30]!r}"


def _messages(setup: Setup) -> list[dict[str, str]]:
    make = chat_messages if setup.config.llm_api_mode == "chat" else xml_messages
    return make("Who wrote Hamlet?")


def _tools(setup: Setup) -> list[dict[str, Any]]:
    return [SEARCH_TOOL] if setup.config.llm_api_mode == "chat" else []


def _render(setup: Setup) -> str:
    return render_prompt(setup.tokenizer, _messages(setup), _tools(setup), **setup.template_kwargs)


def _text_after_turn(setup: Setup, messages: list[dict[str, str]]) -> str:
    """The text that the plugin appends after an assistant's words, including the end of that turn."""
    return decode(setup.tokenizer, next_turn_ids(setup.tokenizer, messages, None, **setup.template_kwargs))


def _stop_ids(setup: Setup) -> set[int]:
    """The tokens at which SGLang ends a turn."""
    found: set[Any] = {setup.tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        try:
            ids = read_json(Path(setup["HF_CHECKPOINT"]) / name).get("eos_token_id")
        except BadFile:
            continue  # generation_config.json is optional; config.json has its own row
        found |= set(ids) if isinstance(ids, list) else {ids}
    return found - {None}


CHECKS = (chat_template, tools, appending, end_of_turn, thinking)
