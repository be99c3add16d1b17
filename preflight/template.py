"""Checks that the chat template exists, teaches readable tool calls, and allows appending turns."""

from pathlib import Path
from typing import Any

from preflight.checkpoint_files import BadFile, read_json
from preflight.findings import Blocked, Finding, Mistake, doubtful, fine, mistake, one_line, skipped, wrong
from preflight.setup import Setup
from search_rollout.protocols.chat_template import check_appending, decode, encode, next_turn_ids, render_prompt
from search_rollout.protocols.prompts import SEARCH_TOOL, chat_messages, xml_messages
from search_rollout.protocols.tool_formats import REMEDY, fits, tool_format

OTHER_MODEL = "use a model whose template does, such as Qwen2.5-3B-Instruct"
MARK = "a text that occurs nowhere else"


def rendered_prompt(setup: Setup) -> str:
    """Our prompt as the chat template renders it. Raises Mistake, or Blocked if prompts need no template."""
    if setup.config.llm_api_mode != "chat" and not setup.is_on("APPLY_CHAT_TEMPLATE"):
        raise Blocked("prompts are whole texts: APPLY_CHAT_TEMPLATE=0")
    tokenizer = setup.tokenizer
    if not tokenizer.chat_template:
        raise Mistake(
            f"{setup['HF_CHECKPOINT']} has no chat template",
            "use the Instruct version of the model; a base model takes data of "
            "`oai_format_data_preprocess.py --format text`, with APPLY_CHAT_TEMPLATE=0",
        )
    with mistake(OTHER_MODEL, Exception, found="the chat template refuses our prompt: "):  # it may raise anything
        text = render_prompt(tokenizer, _messages(setup), _tools(setup), **setup.template_kwargs)
    if (read := decode(tokenizer, encode(tokenizer, text))) != text:
        raise Mistake(
            f"the tokenizer changes our prompt: {_difference(text, read)}",
            "use the tokenizer that came with the model: this one does not decode to the text that it encoded",
        )
    return text


def chat_template(setup: Setup) -> Finding:
    text = setup.once(rendered_prompt)
    return fine(f"renders our prompt in {len(encode(setup.tokenizer, text))} tokens")


def tools(setup: Setup) -> Finding:
    if setup.config.llm_api_mode != "chat":
        return skipped("generate mode has none")
    if SEARCH_TOOL["function"]["description"] not in setup.need(rendered_prompt):
        return wrong("the chat template leaves out the tools, so the model never sees them", OTHER_MODEL)
    setup.need(text_after_turn)
    name = setup.config.tool_call_format
    try:
        form = tool_format(setup.tokenizer, name)
    except ValueError as error:
        return wrong(one_line(error).removesuffix(REMEDY).strip(), REMEDY)
    if not fits(setup.tokenizer, form):
        return wrong(f"the chat template writes tool calls that {name} does not read", "set tool_call_format to auto")
    return fine(f"shown to the model; calls are read as {form.name}")


def text_after_turn(setup: Setup) -> str:
    """What the plugin appends after an assistant's words, including the end of that turn.

    Raises Mistake if it depends on earlier turns: it could not be appended to the engine's ids.
    """
    setup.need(rendered_prompt)
    tokenizer, kwargs, role = setup.tokenizer, setup.template_kwargs, _role(setup)
    message = {"role": role, "content": MARK} | ({"tool_call_id": "call00000"} if role == "tool" else {})
    turns = [{"role": "assistant", "content": "I look it up."}, message]
    with mistake(OTHER_MODEL, Exception):
        check_appending(tokenizer, role, **kwargs)
        after = decode(tokenizer, next_turn_ids(tokenizer, [message], None, **kwargs))
        shown = render_prompt(tokenizer, [*_messages(setup), *turns], _tools(setup), **kwargs)
    if not shown.endswith(after):
        found = f"the chat template writes a {role} message differently after a longer conversation"
        raise Mistake(f"{found}: turns cannot be appended to what the engine sampled", OTHER_MODEL)
    return after


def appending(setup: Setup) -> Finding:
    setup.once(text_after_turn)
    return fine(f"a {_role(setup)} message is written the same way whatever precedes it")


def end_of_turn(setup: Setup) -> Finding:
    tokenizer = setup.tokenizer
    end, stops = encode(tokenizer, setup.need(text_after_turn))[0], _stop_ids(setup)
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
    if setup.need(rendered_prompt).rstrip().endswith("</think>"):
        return doubtful(
            "the chat template turns thinking off: prompts end in an empty <think></think>",
            "set enable_thinking: true in apply_chat_template_kwargs (CUSTOM_CONFIG_PATH)",
        )
    return fine("prompts do not turn thinking off")


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
