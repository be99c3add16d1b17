"""Checks of the prompt data: that its rows are what this mode of the rollouts takes."""

from collections.abc import Mapping
from typing import Any

from preflight.data_files import Data, preparation, read_data
from preflight.findings import Blocked, Check, Finding, Mistake, doubtful, fine, skipped, wrong
from preflight.setup import Setup
from qa_em_format import gold_answers
from search_rollout.protocols.chat_template import encode, render_prompt
from search_rollout.protocols.tools import tools_of

TAGS = ("<search>", "<answer>")


def file(setup: Setup) -> Finding:
    data = setup.once(read_prompts)
    return fine(f"{data.path}: {data.total:,} rows")


def rows(setup: Setup) -> Finding:
    count, batch = _usable(setup).total, setup.number("ROLLOUT_BATCH_SIZE")
    if count < batch:
        return wrong(
            f"{count} rows are less than the {batch} prompts of a step",
            f"set ROLLOUT_BATCH_SIZE to {count} or less, or use more data",
        )
    return fine(f"steps of {batch} prompts until one comes again: {count // batch:,}")


def prompts(setup: Setup) -> Finding:
    data = _usable(setup)
    require_prompts(setup, data)
    return fine("texts" if isinstance(data.first[0]["prompt"], str) else "lists of messages")


def answers(setup: Setup) -> Finding:
    data = _usable(setup)
    require_golds(setup, data)
    example = gold_answers(data.first[0]["reward_model"])[0]
    return fine(f"in each of the first {len(data.first)} rows, such as {example!r}")


def length(setup: Setup) -> Finding:
    data = _fitting(setup)
    longest = longest_prompt(setup, data)
    return fine(f"at most {longest} tokens in the first {len(data.first)} rows, of {setup.config.max_context_length}")


def instructions(setup: Setup) -> Finding:
    data = _fitting(setup)
    if setup.config.llm_api_mode == "chat":
        return _tools(setup, data)
    text = _words(data.first[0]["prompt"])
    if missing := [tag for tag in TAGS if tag not in text]:
        return doubtful(
            f"the first prompt does not name {' and '.join(missing)}: the model must guess how to search and answer",
            f"make the data anew:\n{preparation(setup, data.name)}",
        )
    return fine("the first prompt explains the tags")


def evaluation(setup: Setup) -> Finding:
    if not setup.number("EVAL_INTERVAL"):
        return skipped("EVAL_INTERVAL is 0")
    data = read_data(setup, "EVAL_DATA")
    for require in (require_columns, require_prompts, require_golds, longest_prompt):
        require(setup, data)
    return fine(f"{data.path}: {data.total:,} rows, every {setup['EVAL_INTERVAL']} steps")


def read_prompts(setup: Setup) -> Data:
    """PROMPT_DATA, with its columns. Raises Mistake."""
    data = read_data(setup, "PROMPT_DATA")
    require_columns(setup, data)
    return data


def _usable(setup: Setup) -> Data:
    """As `read_prompts`; raises Blocked where that finds a mistake."""
    try:
        return setup.once(read_prompts)
    except (Mistake, ModuleNotFoundError) as mistake:
        raise Blocked("PROMPT_DATA cannot be used") from mistake


def _fitting(setup: Setup) -> Data:
    """As `_usable`; raises Blocked where `prompts` finds a mistake, too."""
    data = _usable(setup)
    try:
        require_prompts(setup, data)
    except Mistake as mistake:
        raise Blocked("the prompts do not fit the mode") from mistake
    return data


# --- what must hold of the first rows; each raises Mistake ---


def require_columns(setup: Setup, data: Data) -> None:
    for number, row in enumerate(data.first):
        missing = [name for name in ("prompt", "reward_model") if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise Mistake(
                f"row {number} of {data.path} has no {' and no '.join(missing)}",
                f"make the data anew:\n{preparation(setup, data.name)}",
            )


def require_prompts(setup: Setup, data: Data) -> None:
    is_chat, applied = setup.config.llm_api_mode == "chat", setup.is_on("APPLY_CHAT_TEMPLATE")
    anew = f"make the data anew:\n{preparation(setup, data.name)}"
    for number, row in enumerate(data.first):
        prompt = row["prompt"]
        if isinstance(prompt, str):
            if is_chat:
                raise Mistake(f"the prompt of row {number} is a text; LLM_API_MODE=chat needs messages", anew)
            if applied:
                found = f"the prompt of row {number} is a text; APPLY_CHAT_TEMPLATE=1 needs messages"
                raise Mistake(found, f"set APPLY_CHAT_TEMPLATE=0 if that text is the whole prompt, or {anew}")
        elif not _are_messages(prompt):
            raise Mistake(f"the prompt of row {number} is neither a text nor messages with role and content", anew)
        elif not is_chat and not applied:
            found = f"the prompt of row {number} is a list of messages, and no chat template is applied to it"
            raise Mistake(found, "set APPLY_CHAT_TEMPLATE=1")


def require_golds(setup: Setup, data: Data) -> None:
    without = [
        number for number, row in enumerate(data.first) if not any(map(str.strip, gold_answers(row["reward_model"])))
    ]
    if without:
        raise Mistake(
            f"{len(without)} of the first {len(data.first)} rows have no gold answer in reward_model; the first is "
            f"row {without[0]}",
            f'it must be {{"ground_truth": {{"target": [answers]}}}}; make the data anew:\n'
            f"{preparation(setup, data.name)}",
        )


def longest_prompt(setup: Setup, data: Data) -> int:
    """In tokens; raises Mistake if it leaves no room for an observation and an answer."""
    config, tokenizer = setup.config, setup.tokenizer
    if not tokenizer.chat_template and not isinstance(data.first[0]["prompt"], str):
        raise Blocked("there is no chat template")
    longest = max(len(encode(tokenizer, _rendered(setup, row))) for row in data.first)
    kept = config.max_obs_tokens + config.answer_reserve_tokens
    if longest + kept > config.max_context_length:
        raise Mistake(
            f"a prompt has {longest} tokens: of max_context_length={config.max_context_length} less than {kept} are "
            "left, which one observation and an answer need",
            "raise max_context_length (SEARCH_R1_MAX_CONTEXT_LENGTH or the YAML), or leave out long prompts",
        )
    return longest


def _are_messages(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt)
    )


def _words(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)


def _rendered(setup: Setup, row: Mapping[str, Any]) -> str:
    """A row's prompt as the model's text."""
    if isinstance(row["prompt"], str):
        return row["prompt"]
    tools = tools_of(_metadata(row)) if setup.config.llm_api_mode == "chat" else []
    return render_prompt(setup.tokenizer, row["prompt"], tools, **setup.template_kwargs)


def _tools(setup: Setup, data: Data) -> Finding:
    try:
        given = [tools_of(_metadata(row)) for row in data.first if _metadata(row).get("tools") is not None]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return wrong(
            f"the tools of a row are not in OpenAI's form: {error}",
            f"make the data anew:\n{preparation(setup, data.name)}",
        )
    if not given:
        return doubtful(
            "the rows have no tools: the model gets search(queries), and its prompt may explain tags instead",
            f"make the data anew:\n{preparation(setup, data.name)}",
        )
    return fine(f"the tools are {', '.join(tool['function']['name'] for tool in given[0])}")


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's metadata with the tools beside it, as --tool-key puts them there."""
    metadata = dict(row.get("metadata") or {})
    return metadata if row.get("tools") is None else {**metadata, "tools": row["tools"]}


CHECKS = (
    Check("file", file),
    Check("rows", rows),
    Check("prompts", prompts),
    Check("gold answers", answers),
    Check("prompt length", length),
    Check("instructions", instructions),
    Check("evaluation", evaluation),
)
