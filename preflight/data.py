"""Checks that the prompt data's rows suit the rollouts' mode."""

from collections.abc import Mapping
from typing import Any

from preflight.data_files import Data, read_data, read_evaluation
from preflight.findings import Finding, Mistake, doubtful, fine, mistake, skipped, wrong
from preflight.setup import Setup
from preflight.template import rendered_prompt
from qa_em_format import gold_answers
from search_rollout.protocols.chat_template import encode, render_prompt
from search_rollout.protocols.tools import tools_of

TAGS = ("<search>", "<answer>")


def read_prompts(setup: Setup) -> Data:
    """PROMPT_DATA, with its columns. Raises Mistake."""
    return require_columns(read_data(setup, "PROMPT_DATA"))


def fitting_prompts(setup: Setup) -> Data:
    """PROMPT_DATA, with prompts for this mode. Raises Mistake."""
    return require_prompts(setup, setup.need(read_prompts))


def file(setup: Setup) -> Finding:
    data = setup.once(read_prompts)
    return fine(f"{data.path}: {data.total:,} rows")


def rows(setup: Setup) -> Finding:
    count, batch = setup.need(read_prompts).total, setup.number("ROLLOUT_BATCH_SIZE")
    if count < batch:
        remedy = f"set ROLLOUT_BATCH_SIZE to {count} or less, or use more data"
        return wrong(f"{count} rows are fewer than the {batch} prompts of a step", remedy)
    return fine(f"{count // batch:,} steps of {batch} prompts before any repeats")


def prompts(setup: Setup) -> Finding:
    data = setup.once(fitting_prompts)
    return fine("texts" if isinstance(data.first[0]["prompt"], str) else "lists of messages")


def gold_answer(setup: Setup) -> Finding:
    data = require_golds(setup.need(read_prompts))
    example = gold_answers(data.first[0]["reward_model"])[0]
    return fine(f"in each of the first {len(data.first)} rows, such as {example!r}")


def prompt_length(setup: Setup) -> Finding:
    data = setup.need(fitting_prompts)
    longest, limit = longest_prompt(setup, data), setup.config.max_context_length
    return fine(f"at most {longest} tokens in the first {len(data.first)} rows; max_context_length is {limit}")


def instructions(setup: Setup) -> Finding:
    data = setup.need(fitting_prompts)
    if setup.config.llm_api_mode == "chat":
        return _tools(data)
    prompt = data.first[0]["prompt"]
    text = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
    if missing := [tag for tag in TAGS if tag not in text]:
        found = f"the first prompt does not mention {' and '.join(missing)}: the model must guess how to use them"
        return doubtful(found, data.remedy)
    return fine("the first prompt explains the tags")


def _tools(data: Data) -> Finding:
    given = [tools_of(_metadata(row)) for row in data.first if _metadata(row).get("tools") is not None]
    if not given:
        found = "the rows have no tools: the model gets search(queries), but its prompt may explain tags instead"
        return doubtful(found, data.remedy)
    return fine(f"the tools are {', '.join(tool['function']['name'] for tool in given[0])}")


def evaluation(setup: Setup) -> Finding:
    if not setup.number("EVAL_INTERVAL"):
        return skipped("EVAL_INTERVAL is 0")
    sets = read_evaluation(setup)
    for data in sets:
        longest_prompt(setup, require_golds(require_prompts(setup, require_columns(data))))
    named = str(sets[0].path) if setup["EVAL_DATA"] else f"{len(sets)} sets of {setup['EVAL_CONFIG']}"
    return fine(f"{named}: {sum(data.total for data in sets):,} rows, every {setup['EVAL_INTERVAL']} steps")


# --- requirements on the first rows; each raises Mistake ---


def require_columns(data: Data) -> Data:
    for number, row in enumerate(data.first):
        missing = [name for name in ("prompt", "reward_model") if not isinstance(row, dict) or row.get(name) is None]
        if missing:
            raise Mistake(f"row {number} of {data.path} has no {' and no '.join(missing)}", data.remedy)
    return data


def require_prompts(setup: Setup, data: Data) -> Data:
    is_chat, applied = setup.config.llm_api_mode == "chat", setup.is_on("APPLY_CHAT_TEMPLATE")
    for number, row in enumerate(data.first):
        prompt, its = row["prompt"], f"the prompt of row {number} is"
        if isinstance(prompt, str):
            if is_chat:
                raise Mistake(f"{its} a text; LLM_API_MODE=chat needs messages", data.remedy)
            if applied:
                remedy = f"set APPLY_CHAT_TEMPLATE=0 if that text is the whole prompt, or {data.remedy}"
                raise Mistake(f"{its} a text; APPLY_CHAT_TEMPLATE=1 needs messages", remedy)
        elif not (prompt and isinstance(prompt, list) and all(map(_is_message, prompt))):
            raise Mistake(f"{its} neither a text nor messages with role and content", data.remedy)
        elif not is_chat and not applied:
            found = f"{its} a list of messages, but no chat template is applied to it"
            raise Mistake(found, "set APPLY_CHAT_TEMPLATE=1")
        if is_chat:
            with mistake(data.remedy, ValueError, found=f"the tools of row {number} are not in OpenAI's form: "):
                tools_of(_metadata(row))
    return data


def require_golds(data: Data) -> Data:
    golds = [gold_answers(row["reward_model"]) for row in data.first]
    if without := [number for number, gold in enumerate(golds) if not any(map(str.strip, gold))]:
        raise Mistake(
            f"{len(without)} of the first {len(golds)} rows have no gold answer in reward_model, starting with row "
            f"{without[0]}",
            f'it must be {{"ground_truth": {{"target": [answers]}}}}; {data.remedy}',
        )
    return data


def longest_prompt(setup: Setup, data: Data) -> int:
    """The longest prompt in tokens. Raises Mistake if it leaves no room for an observation and an answer."""
    config = setup.config
    longest = max(len(encode(setup.tokenizer, _rendered(setup, row))) for row in data.first)
    kept = config.max_obs_tokens + config.answer_reserve_tokens
    if longest + kept > config.max_context_length:
        raise Mistake(
            f"a prompt has {longest} tokens; max_context_length={config.max_context_length} then leaves less than the "
            f"{kept} that one observation and an answer need",
            "raise max_context_length (SEARCH_R1_MAX_CONTEXT_LENGTH or the YAML), or leave out long prompts",
        )
    return longest


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def _rendered(setup: Setup, row: Mapping[str, Any]) -> str:
    """A row's prompt, rendered as the text for the model."""
    if isinstance(row["prompt"], str):
        return row["prompt"]
    setup.need(rendered_prompt)
    tools = tools_of(_metadata(row)) if setup.config.llm_api_mode == "chat" else []
    with mistake("correct that prompt, or use another model", Exception, found="the chat template refuses a prompt: "):
        return render_prompt(setup.tokenizer, row["prompt"], tools, **setup.template_kwargs)


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's metadata, with the tools in it as --tool-key puts them there."""
    metadata = dict(row.get("metadata") or {})
    return metadata if row.get("tools") is None else {**metadata, "tools": row["tools"]}


CHECKS = (file, rows, prompts, gold_answer, prompt_length, instructions, evaluation)
