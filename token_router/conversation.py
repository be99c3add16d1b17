"""The messages of a chat request: checked, converted for a template, and named by keys."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from token_router.errors import bad_request

ROLES = ("system", "developer", "user", "assistant", "tool")
# Arguments that apply_chat_template keeps to itself; a caller's `chat_template` would even be executed here.
RESERVED = {
    *("chat_template", "conversation", "messages", "tools", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclass(frozen=True)
class Conversation:
    """What a chat template renders."""

    messages: list[dict[str, Any]]  # as templates expect them: content is a string, call arguments are objects
    tools: list[dict[str, Any]]
    template_kwargs: dict[str, Any]

    def keys(self, namespace: str) -> list[str]:
        """One key per message; it names the conversation up to and including that message."""
        key = _digest([namespace, self.tools, self.template_kwargs])
        return [key := next_key(key, message) for message in self.messages]


def next_key(key: str, message: Mapping[str, Any]) -> str:
    """The key of a conversation extended by this message. Ids of tool calls are ignored."""
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls") or ()]
    return _digest([key, message["role"], message["content"], calls])


def parse_conversation(body: Mapping[str, Any]) -> Conversation:
    """Reads the conversation in a request's body. Raises ApiError."""
    messages, tools, kwargs = body.get("messages"), body.get("tools"), body.get("chat_template_kwargs")
    if not isinstance(messages, list) or not messages:
        raise bad_request("`messages` must be a list of at least one message.", "no_messages")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise bad_request("`tools` must be a list of objects.")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise bad_request("`chat_template_kwargs` must be an object.")
    if reserved := sorted(RESERVED & set(kwargs or ())):
        raise bad_request(f"`chat_template_kwargs` must not set {', '.join(reserved)}; only variables of the template.")
    checked = [parse_message(message, index) for index, message in enumerate(messages)]
    return Conversation(checked, tools or [], kwargs or {})


def parse_message(message: Any, index: int = 0) -> dict[str, Any]:
    """Converts a message for templates. Raises ApiError if it is malformed."""
    if not isinstance(message, dict):
        raise bad_request(f"messages[{index}] must be an object.", "bad_message")
    if message.get("role") not in ROLES:
        raise bad_request(
            f"messages[{index}].role is {message.get('role')!r}; it must be one of {ROLES}.", "unknown_role"
        )
    parsed = {**message, "content": _text(message.get("content"), index)}
    if message.get("tool_calls"):
        parsed["tool_calls"] = [_tool_call(call, index) for call in _list(message["tool_calls"])]
    return parsed


@contextlib.contextmanager
def template_errors() -> Iterator[None]:
    """Turns any exception of a chat template into the caller's error: the messages caused it."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise bad_request(f"The chat template cannot render these messages: {reason}", "template_error") from error


def _text(content: Any, index: int) -> str:
    """Content as text; some clients send a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text") for part in _list(content) if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for text in parts if isinstance(text, str)]
    if len(texts) != len(_list(content)):
        raise bad_request(f"messages[{index}].content must be text, or a list of text parts.", "bad_message")
    return " ".join(texts)


def _tool_call(call: Any, index: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request(f"messages[{index}].tool_calls must be objects with function.name.", "bad_message")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
