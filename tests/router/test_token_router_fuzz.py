"""Two thousand requests that schemathesis makes for the token router: none is answered by a 500."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from fuzz_helpers import ANYTHING, in_thread, statuses
from router_fakes import FakeWorker, hermes_tokenizer, router, said

pytestmark = pytest.mark.slow

TEXT = {"type": "string"}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool", "wizard"]},
        "content": {"anyOf": [TEXT, {"type": "null"}, {"type": "array", "items": ANYTHING}]},
        "tool_calls": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"function": {"properties": {"name": TEXT, "arguments": ANYTHING}}},
            },
        },
    },
    "required": ["role"],
}
CHAT = {
    "type": "object",
    "properties": {
        "messages": {"type": "array", "items": MESSAGE},
        "tools": {"type": "array", "items": {"type": "object"}},
        "chat_template_kwargs": {"type": "object"},
        "add_generation_prompt": ANYTHING,
        "logprobs": ANYTHING,
        "stop": ANYTHING,
        "max_tokens": ANYTHING,
        "n": ANYTHING,
    },
    "required": ["messages"],
}
GENERATE = {
    "type": "object",
    "properties": {
        "text": TEXT,
        "input_ids": {"type": "array", "items": {"type": "integer"}},
        "sampling_params": {"type": "object"},
        "return_logprob": {"type": "boolean"},
    },
}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": GENERATE,
    "/v1/chat/completions": CHAT,
    "/retrieve_from_text": {"type": "object", "properties": {"text": TEXT}, "required": ["text"]},
    "/retrieve_from_messages_template": CHAT,
    "/workers": {"type": "object", "properties": {"url": {"enum": ["x", "ftp://a", ""]}, "worker_type": ANYTHING}},
}


class Worker(FakeWorker):
    """Answers whatever it is sent."""

    def _reply(self, turn: Any, number: int, body: dict) -> dict:
        return super()._reply(turn, number, {**body, "input_ids": [], "return_logprob": True})


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    async with Worker(lambda _: said("a"), other=lambda *_: web.Response()) as worker:
        async with router(worker, tokenizer=hermes_tokenizer()) as client:
            yield client.url


def test_no_request_makes_the_router_fail() -> None:
    seen: Counter[int] = Counter()
    with in_thread(served) as url:
        for path, body in BODIES.items():
            seen += statuses(url, "post", path, body, 400)
    assert sum(seen.values()) >= 1900 and seen[200] > 100 and seen[400] > 200, seen
