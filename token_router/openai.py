"""OpenAI's chat completions in SGLang's terms: sampling fields of a request, and a worker's reply as the answer."""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from search_rollout.engine.sglang_reply import Reply
from search_rollout.protocols.chat_template import decode
from search_rollout.protocols.tool_formats import ToolCall, ToolFormat, parse_turn
from token_router.errors import bad_request

RENAMED = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
}
UNCHANGED = (
    *("temperature", "top_p", "stop", "frequency_penalty", "presence_penalty"),
    # SGLang's own, beyond OpenAI's
    *("top_k", "min_p", "stop_token_ids", "repetition_penalty", "skip_special_tokens", "no_stop_trim"),
    *("spaces_between_special_tokens", "ignore_eos", "custom_params", "regex", "json_schema", "ebnf"),
)
# Fields that the router cannot pass on although they change the reply, each with the value that changes nothing.
REFUSED = {"n": 1, "top_logprobs": 0, "tool_choice": "auto", "response_format": {"type": "text"}}


def worker_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of a worker's `/generate` request. Raises ApiError for a field that cannot be translated.

    If the caller sets no token limit, neither does the router: the default of SGLang's `/generate`, 128 tokens, would
    surprise a caller of chat completions.
    """
    for field, harmless in REFUSED.items():
        if body.get(field) is not None and body[field] != harmless:
            raise bad_request(f"`{field}` is {body[field]!r}; the router supports only {harmless!r}.", "unsupported")
    params: dict[str, Any] = {"max_new_tokens": None}
    for name in (*RENAMED, *UNCHANGED):
        if body.get(name) is not None:
            params[RENAMED.get(name, name)] = body[name]
    fields: dict[str, Any] = {"sampling_params": params}
    if body.get("logprobs"):
        fields["return_logprob"] = True
    if "logprob_start_len" in body:
        fields["logprob_start_len"] = body["logprob_start_len"]
    return fields


def assistant_message(text: str, form: ToolFormat | None, *, think_opened: bool) -> dict:
    """The assistant message for a turn's text, without end marks; with a form, its calls become `tool_calls`.

    If any call cannot be parsed, the whole text stays in `content`, so that nothing the model said is lost.
    """
    turn = parse_turn(form, text, think_opened=think_opened) if form else None
    calls = [call for call in turn.calls if call.arguments is not None] if turn else []
    if turn is None or not calls:
        return {"role": "assistant", "content": text}
    content = turn.content if len(calls) == len(turn.calls) else text
    return {"role": "assistant", "content": content or None, "tool_calls": [_tool_call(call) for call in calls]}


def completion(
    tokenizer: Any, request: Mapping[str, Any], prompt_tokens: int, reply: Reply, message: dict[str, Any]
) -> dict[str, Any]:
    called = reply.finish == "stop" and "tool_calls" in message
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if called else reply.finish}
    if request.get("logprobs"):
        choice["logprobs"] = {"content": _token_log_probs(tokenizer, reply)}
    if request.get("return_meta_info"):
        choice["meta_info"] = {**reply.meta_info, "output_ids": reply.ids}
    completion_tokens = len(reply.ids)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.get("model") or "default",
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


def _token_log_probs(tokenizer: Any, reply: Reply) -> list[dict[str, Any]]:
    """OpenAI's list of tokens. `bytes` is null, because a token may hold part of a character."""
    return [
        {
            "token": decode(tokenizer, [token]) if text is None else text,
            "logprob": log_prob,
            "bytes": None,
            "top_logprobs": [],
        }
        for token, text, log_prob in zip(reply.ids, reply.token_texts, reply.log_probs or (), strict=False)
    ]
