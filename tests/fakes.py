"""The only fakes: an engine's /generate, a retriever's /retrieve, and slime's GenerateState.

Both servers are real HTTP servers on loopback. `tests/contracts/` holds each fake against the real thing.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINED_ON = (
    "<think>I need the capital of Kenya.</think>\n<search>capital of Kenya</search>\n\n<information>Doc 1"
    '(Title: "Kenya") The capital of Kenya is Nairobi.</information>\n\n<think>It is Nairobi.</think>'
    "<answer>Nairobi</answer>\n\n user assistant system\n"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A real byte-level BPE tokenizer of a few hundred tokens with a ChatML template; any text has many splits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINED_ON] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def slime_args(**changes: Any) -> argparse.Namespace:
    """slime's args as far as a rollout reads them; the local backend, so that no key is needed."""
    values = {
        "hf_checkpoint": "none",
        "sglang_router_ip": "127.0.0.1",
        "sglang_router_port": 1,
        "search_backend": "local",
        "retrieval_server_url": "http://127.0.0.1:1",
        "search_retries": 0,
        "engine_retries": 0,
        "engine_timeout_s": 10.0,
        "search_timeout_s": 10.0,
    }
    return argparse.Namespace(**(values | changes))


@dataclass
class FakeGenerateState:
    """slime's GenerateState, as far as a plugin reads it."""

    tokenizer: Any
    aborted: bool = False


@dataclass
class Turn:
    """What the fake engine samples in one call: `ids` wins over `text`, which is encoded in the usual way."""

    text: str = ""
    ids: list[int] | None = None
    finish: str = "stop"
    status: int = 200
    body: Any = None  # sent as it is instead of a reply
    delay_s: float = 0.0


Script = Callable[[dict], Turn | Awaitable[Turn]]


@dataclass
class FakeEngine:
    """A `/generate` that answers from a script and records every request.

    Its log-probabilities name their origin: token `p` of the reply to request `r` has -(r + p / 1000) - 0.0005, and
    token `p` of that request's prompt, where it was asked for, 100 less.
    """

    tokenizer: Any
    script: Iterable[Turn] | Script
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    sampled: list[list[int]] = field(default_factory=list)  # ids of each reply
    reports_top_p: bool = True  # where slime's custom_params ask for it
    _server: TestServer | None = None

    async def __aenter__(self) -> "FakeEngine":
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", self._generate)
        self._server = TestServer(app)
        await self._server.start_server()
        if not callable(self.script):
            turns = iter(self.script)
            self.script = lambda _: next(turns)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.close()

    @property
    def port(self) -> int:
        assert self._server is not None and self._server.port is not None
        return self._server.port

    @staticmethod
    def log_prob(request: int, position: int) -> float:
        return -(request + position / 1000) - 0.0005

    def _matched(self, ids: list[int]) -> int | str | None:
        """A stop token's id, or the stop string, as SGLang reports it."""
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            return ids[-1]
        text = self.tokenizer.decode(ids)
        return next((stop for stop in ("</search>", "</answer>") if stop in text), None)

    async def _generate(self, http_request: web.Request) -> web.StreamResponse:
        request = await http_request.json()
        number = len(self.requests)
        self.requests.append(request)
        self.headers.append(dict(http_request.headers))
        self.sampled.append([])
        assert callable(self.script)
        turn = self.script(request)
        if not isinstance(turn, Turn):
            turn = await turn
        if turn.delay_s:
            await asyncio.sleep(turn.delay_s)
        if turn.status == 0:  # a connection cut in the middle
            assert http_request.transport is not None
            http_request.transport.close()
            return web.Response()
        if turn.status != 200 or turn.body is not None:
            if isinstance(turn.body, str | bytes):
                return web.Response(status=turn.status, body=turn.body)
            return web.json_response(turn.body, status=turn.status)
        ids = self.tokenizer.encode(turn.text) if turn.ids is None else turn.ids
        limit = request["sampling_params"]["max_new_tokens"]
        finish = turn.finish if len(ids) <= limit else "length"
        ids = ids[:limit]
        self.sampled[number] = ids
        meta: dict[str, Any] = {
            "id": str(number),
            "finish_reason": {"type": finish, "matched": self._matched(ids) if finish == "stop" else None},
            "prompt_tokens": len(request["input_ids"]),
            "completion_tokens": len(ids),
            "cached_tokens": 0,
            "weight_version": "7",
        }
        custom = request["sampling_params"].get("custom_params") or {}
        if custom.get("return_top_p_token_ids") and self.reports_top_p:  # two for each token: itself, and the next id
            meta["top_p_token_ids"] = [one for token in ids for one in (token, token + 1)]
            meta["top_p_token_offsets"] = list(range(0, 2 * len(ids) + 1, 2))
        if request.get("return_logprob"):
            meta["output_token_logprobs"] = [[self.log_prob(number, p), token, None] for p, token in enumerate(ids)]
            if (start := request.get("logprob_start_len", -1)) >= 0:
                read = list(enumerate(request["input_ids"]))[start:]
                values = [None, *(self.log_prob(number, p) - 100 for p, _ in read[1:])]
                meta["input_token_logprobs"] = [[value, i, None] for value, (_, i) in zip(values, read, strict=True)]
        return web.json_response({"text": self.tokenizer.decode(ids), "output_ids": ids, "meta_info": meta})


class LoopbackHost:
    """A server on loopback that `start` and `stop` again on the same port; `app` says what it answers."""

    port: int | None = None
    _server: TestServer | None = None

    async def __aenter__(self) -> Any:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; on the same port as before, if it was stopped."""
        self._server = TestServer(self.app(), port=self.port)
        await self._server.start_server(shutdown_timeout=0.01)
        self.port = self._server.port

    async def stop(self) -> None:
        """Cuts every connection and listens no more."""
        assert self._server is not None
        await self._server.close()

    def app(self) -> web.Application:
        raise NotImplementedError


@dataclass
class FakeRetriever(LoopbackHost):
    """A `/retrieve` that answers every query with the same documents, or does what `trouble` says."""

    documents: list[str] = field(default_factory=lambda: ['"Kenya capital"\nThe capital of Kenya is Nairobi.'])
    trouble: Callable[[int], web.StreamResponse | float | None] | None = None  # request number -> answer or delay
    guard: Callable[[web.Request], web.Response | None] | None = None  # what stands before every request
    queries: list[str] = field(default_factory=list)
    requests: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/retrieve", self._retrieve)
        return app

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _retrieve(self, http_request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.guard and (refusal := self.guard(http_request)):
            return refusal
        request = await http_request.json()
        self.queries += request["queries"]
        trouble = self.trouble(len(self.queries) - 1) if self.trouble else None
        if isinstance(trouble, float):
            await asyncio.sleep(trouble)
        elif trouble is not None:
            return trouble
        found = [
            {"document": {"id": str(number), "contents": contents}, "score": 1.0 - number / 10}
            for number, contents in enumerate(self.documents[: request["topk"]])
        ]
        return web.json_response({"result": [found for _ in request["queries"]]})
