"""The client of an engine: SGLang's `/generate`, and the endpoints of a token router."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from search_rollout.engine.sglang_reply import EngineError, Reply, parse_reply
from search_rollout.http_client import JsonClient, RequestFailed
from search_rollout.timeline import ENGINE_CALL, reply_attributes, span

PAUSE_S = 1.0  # a restarting engine or router is back in a minute: eight retries wait about that long


class GrowingIds:
    """Ids that only grow, as JSON. Each is written once: writing all in every turn costs the square of the length."""

    def __init__(self) -> None:
        self._text = ""
        self._count = 0

    def as_json(self, ids: Sequence[int]) -> str:
        """The JSON text of `ids`, which begin with those of the last call."""
        if len(ids) > self._count:
            new = json.dumps(ids[self._count :])[1:-1]
            self._text = f"{self._text}, {new}" if self._text else new
            self._count = len(ids)
        return f"[{self._text}]"


class EngineClient:
    """Client of one router or engine; belongs to one event loop."""

    def __init__(self, base_url: str, *, timeout_s: float, retries: int) -> None:
        self._client = JsonClient(base_url, timeout_s=timeout_s, retries=retries, pause_s=PAUSE_S)
        self._retries = retries

    async def generate(
        self, body: Mapping[str, Any], headers: Mapping[str, str], aborted: Callable[[], bool], ids_json: str = ""
    ) -> Reply:
        """Samples one reply by `/generate`; `ids_json`, if any, becomes the body's `input_ids`.

        Raises EngineError when none came that can be trained on.
        A reply that the engine cut short although `aborted()` is false (it does that when its weights are exchanged)
        is dropped, and the same request is sent again.
        """
        encoded = f'{{"input_ids": {ids_json}, {json.dumps(body)[1:]}'.encode() if ids_json else body
        return await self._complete("/generate", encoded, headers, aborted, bool(body.get("return_logprob")))

    async def chat(self, body: Mapping[str, Any], headers: Mapping[str, str], aborted: Callable[[], bool]) -> Reply:
        """Samples one reply by a token router's `/v1/chat/completions`; as `generate`, with `Reply.message`."""
        asked = {**body, "return_meta_info": True}
        return await self._complete("/v1/chat/completions", asked, headers, aborted, bool(body.get("logprobs")))

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        """Any other call of the router. Raises RequestFailed."""
        return await self._client.post(path, body, headers)

    async def close(self) -> None:
        await self._client.close()

    async def _complete(
        self,
        path: str,
        body: Mapping[str, Any] | bytes,
        headers: Mapping[str, str],
        aborted: Callable[[], bool],
        track_log_probs: bool,
    ) -> Reply:
        for _ in range(self._retries + 1):
            with span(ENGINE_CALL) as add_to_span:
                try:
                    answer = await self._client.post(path, body, headers, called_off=aborted)
                except RequestFailed as failure:
                    raise EngineError(str(failure)) from failure
                reply = _with_log_probs(parse_reply(answer)) if track_log_probs else _without(parse_reply(answer))
                if add_to_span:
                    add_to_span(reply_attributes(reply.facts))
            if reply.finish != "abort" or aborted():
                return reply
        raise EngineError(f"The engine kept aborting a request that slime did not cancel ({self._retries + 1} tries).")


def _with_log_probs(reply: Reply) -> Reply:
    """The reply with a log-probability per id. Raises EngineError if there are none; an abort may lack them."""
    if reply.log_probs is not None:
        return reply
    if reply.finish != "abort":
        raise EngineError("The engine's reply has no output_token_logprobs.")
    return replace(reply, ids=[], log_probs=[])


def _without(reply: Reply) -> Reply:
    return reply if reply.log_probs is None else replace(reply, log_probs=None)


def call_params(shared: Mapping[str, Any], room: int, stop_strings: Sequence[str], *, begun: int = 0) -> dict[str, Any]:
    """The sampling parameters of one call: a copy of slime's, which siblings share, with ours merged in.

    `room` limits the caller's max_new_tokens; `stop_strings` are added to the caller's stops; `begun` is the number of
    tokens that the turn already has.
    """
    stop = shared.get("stop") or []
    stop = [stop] if isinstance(stop, str) else list(stop)
    asked = shared.get("max_new_tokens")
    most = room if asked is None else min(int(asked) - begun, room)
    params = {
        **shared,
        "max_new_tokens": most,
        "stop": stop + [string for string in stop_strings if string not in stop],
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }
    if shared.get("min_new_tokens"):
        params["min_new_tokens"] = min(max(shared["min_new_tokens"] - begun, 0), most)
    return params
