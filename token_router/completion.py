"""A worker's reply in the form of OpenAI's chat completions."""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from search_rollout.engine.sglang_reply import Reply
from search_rollout.protocols.chat_template import decode
from search_rollout.protocols.tool_formats import ToolCall, ToolFormat, parse_turn


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
    """The answer to a chat request."""
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
