"""A worker that answers from a script and records what it got, a router in front of some, and tokenizers for both."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from fakes import tiny_tokenizer

from search_rollout.protocols.tool_formats import FORMATS
from token_router.app import create_app, make_runner
from token_router.token_trie import TokenTrie
from token_router.workers import Workers

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
# As Qwen's template does it: calls are rendered again, tool results are user turns, and only the last assistant turn
# gets an empty thought.
HERMES = (
    "{% if tools %}<|im_start|>system\n<tool_call>{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>{% endif %}{% endif %}"
)


def hermes_tokenizer() -> Any:
    """The tiny tokenizer with a template that has tools."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = HERMES
    return tokenizer


def letters(text: str) -> list[int]:
    """The text split as no tokenizer would: every character alone."""
    return [token for character in text for token in TOKENIZER.encode(character)]


@dataclass
class Turn:
    """What the worker answers to one /generate."""

    ids: list[int] = field(default_factory=list)
    text: str | None = None  # of the reply, if it is not what the ids decode to
    finish: str = "stop"
    version: str = "7"
    status: int = 200
    body: Any = None  # sent as it is instead of a reply
    drop: bool = False  # cuts the connection instead
    wait: asyncio.Event | None = None


def said(text: str, *, end: bool = False, **more: Any) -> Turn:
    """A reply in single characters."""
    return Turn(letters(text) + [EOS] * end, **more)


def log_probs_of(call: int, count: int) -> list[float]:
    """The log-probabilities of the worker's reply to its call of that number."""
    return [-(call + place / 1000) - 0.0005 for place in range(count)]


@dataclass
class FakeWorker:
    """Listens on loopback. What is not /generate gets `other`'s answer."""

    script: Iterable[Turn] | Callable[[dict], Turn] = ()
    other: Callable[[web.Request, bytes], web.StreamResponse] | None = None
    port: int = 0
    calls: list[dict] = field(default_factory=list)  # bodies of /generate
    headers: list[Any] = field(default_factory=list)
    hung_up: int = 0  # callers who did not wait
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "FakeWorker":
        if not callable(self.script):
            turns = iter(self.script)
            self.script = lambda _: next(turns)
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/generate", self._generate)
        app.router.add_route("*", "/{path:.*}", self._other)
        self._runner, self.port = await serve(
            web.AppRunner(app, handler_cancellation=True, auto_decompress=False, shutdown_timeout=0.1), self.port
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.calls)
        self.calls.append(body)
        self.headers.append(request.headers.copy())
        assert callable(self.script)
        turn = self.script(body)
        if turn.wait:
            try:
                await turn.wait.wait()
            except asyncio.CancelledError:
                self.hung_up += 1
                raise
        if turn.drop:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if turn.body is not None or turn.status != 200:
            raw = turn.body if isinstance(turn.body, bytes) else json.dumps(turn.body).encode()
            return web.Response(status=turn.status, body=raw, content_type="application/json")
        response = web.json_response(self._reply(turn, number, body))
        response.enable_compression()  # if the request allows it
        return response

    def _reply(self, turn: Turn, number: int, body: dict) -> dict:
        meta = {
            "id": str(number),
            "finish_reason": {"type": turn.finish},
            "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(turn.ids),
            "cached_tokens": 0,
            "weight_version": turn.version,
        }
        if body.get("return_logprob"):
            pairs = zip(log_probs_of(number, len(turn.ids)), turn.ids, strict=True)
            meta["output_token_logprobs"] = [[log_prob, token, None] for log_prob, token in pairs]
        text = TOKENIZER.decode(turn.ids) if turn.text is None else turn.text
        return {"text": text, "output_ids": turn.ids, "meta_info": meta}

    async def _other(self, request: web.Request) -> web.StreamResponse:
        assert self.other is not None, f"{request.method} {request.raw_path} was not expected"
        return self.other(request, await request.read())


@dataclass
class Router:
    """A router and a client of it."""

    url: str
    session: aiohttp.ClientSession
    store: TokenTrie
    workers: Workers

    async def request(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and decoded JSON."""
        async with self.session.request(method, self.url + path, **more) as answer:
            return answer.status, await answer.json(content_type=None)

    async def post(self, path: str, body: Any, trajectory: str | None = "t") -> tuple[int, Any]:
        headers = {} if trajectory is None else {"X-Search-R1-Trajectory": trajectory}
        return await self.request("POST", path, json=body, headers=headers)

    async def generate(self, trajectory: str | None = "t", **body: Any) -> dict:
        """The reply to /generate, asked for with log-probabilities; the status must be 200."""
        body = {"sampling_params": {"max_new_tokens": 64}, "return_logprob": True, **body}
        status, reply = await self.post("/generate", body, trajectory)
        assert status == 200, reply
        return reply

    async def by_text(self, text: str, trajectory: str | None = "t") -> dict:
        """The record of a text; the status must be 200."""
        status, record = await self.post("/retrieve_from_text", {"text": text}, trajectory)
        assert status == 200, record
        return record

    async def error(self, path: str, body: Any, status: int, code: str, trajectory: str | None = "t") -> str:
        """The message of an error that must have this status and code."""
        got, answer = await self.post(path, body, trajectory)
        assert (got, answer["error"]["code"]) == (status, code), answer
        assert answer["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
        return answer["error"]["message"]


@contextlib.asynccontextmanager
async def router(
    *workers: FakeWorker | str,
    tokenizer: Any = TOKENIZER,
    max_tokens: int = 10**6,
    max_body_bytes: int = 2**24,
    tool_format: str | None = "hermes",
    probe_pause_s: float = 60.0,
) -> AsyncIterator[Router]:
    """A router on loopback, run as the command runs it."""
    known, store = Workers(), TokenTrie(max_tokens)
    for worker in workers:
        known.add(worker if isinstance(worker, str) else worker.url)
    app = create_app(
        tokenizer,
        known,
        store,
        tool_format=FORMATS[tool_format] if tool_format else None,
        max_body_bytes=max_body_bytes,
        probe_pause_s=probe_pause_s,
    )
    runner, port = await serve(make_runner(app))
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Router(f"http://127.0.0.1:{port}", session, store, known)
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], Any]) -> None:
    """Waits for what happens in a server of this same loop; fails after five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (what is waited for knows of no event)
            await asyncio.sleep(0.005)


async def serve(runner: web.AppRunner, port: int = 0) -> tuple[web.AppRunner, int]:
    """The runner at work, and its port."""
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    return runner, runner.addresses[0][1]
