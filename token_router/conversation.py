"""The messages of a chat request: checked, made fit for a template, and named by keys."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from token_router.errors import bad_request

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """What a chat template makes a prompt of."""

    messages: list[dict[str, Any]]  # content is text, and arguments of calls are objects, as templates want it
    tools: list[dict[str, Any]]
    template_kwargs: dict[str, Any]

    def keys(self, namespace: str) -> list[str]:
        """A key for each message, of the conversation up to and with it."""
        key = _digest([namespace, self.tools, self.template_kwargs])
        return [key := next_key(key, message) for message in self.messages]


def next_key(key: str, message: Mapping[str, Any]) -> str:
    """The key of a conversation that goes on with this message. Ids of tool calls make no difference."""
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls") or ()]
    return _digest([key, message["role"], message["content"], calls])


def parse_conversation(body: Mapping[str, Any]) -> Conversation:
    """The conversation in a request's body. Raises ApiError, in one sentence, if there is none."""
    messages, tools, kwargs = body.get("messages"), body.get("tools"), body.get("chat_template_kwargs")
    if not isinstance(messages, list) or not messages:
        raise bad_request("`messages` must be a list of at least one message.", "no_messages")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise bad_request("`tools` must be a list of objects.")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise bad_request("`chat_template_kwargs` must be an object.")
    checked = [parse_message(message, place) for place, message in enumerate(messages)]
    return Conversation(checked, tools or [], kwargs or {})


def parse_message(message: Any, place: int = 0) -> dict[str, Any]:
    """A message as templates want it. Raises ApiError if it is none."""
    if not isinstance(message, dict):
        raise bad_request(f"messages[{place}] must be an object.", "bad_message")
    if message.get("role") not in ROLES:
        raise bad_request(f"messages[{place}].role is {message.get('role')!r}; known are {ROLES}.", "unknown_role")
    parsed = {**message, "content": _text(message.get("content"), place)}
    if message.get("tool_calls"):
        parsed["tool_calls"] = [_tool_call(call, place) for call in _list(message["tool_calls"])]
    return parsed


@contextlib.contextmanager
def template_errors() -> Iterator[None]:
    """Whatever a chat template raises is about the messages it was given: the caller's business."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise bad_request(f"The chat template cannot write these messages: {reason}", "template_error") from error


def _text(content: Any, place: int) -> str:
    """Content as text: some clients send it in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text") for part in _list(content) if isinstance(part, dict) and part.get("type") == "text"]
    texts = [text for text in parts if isinstance(text, str)]
    if len(texts) != len(_list(content)):
        raise bad_request(f"messages[{place}].content must be text, or a list of text parts.", "bad_message")
    return " ".join(texts)


def _tool_call(call: Any, place: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request(f"messages[{place}].tool_calls must be objects with function.name.", "bad_message")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
