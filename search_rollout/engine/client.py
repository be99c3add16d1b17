"""The policy behind SGLang: clients of its `/generate`, and of a token router's endpoints."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_rollout.http_client import JsonClient, RequestFailed

PAUSE_S = 1.0  # an engine or router that restarts is back in a minute: eight retries wait about that long


class EngineError(Exception):
    """The engine gave no answer, or one that cannot be trained on; the message says what came."""


@dataclass(frozen=True)
class Reply:
    """One engine call's answer. The log-probabilities are None when they were not asked for."""

    ids: list[int]
    log_probs: list[float] | None
    finish: str  # "stop", "length" or "abort"
    ended_turn: bool  # a stop token ended it, not a stop string
    weight_version: str | None = None
    text: str = ""  # as the engine decoded it
    prompt_tokens: int | None = None  # how many ids the engine read
    prompt_scores: list[tuple[int, float]] | None = None  # (id, log-probability) behind logprob_start_len
    message: dict[str, Any] | None = None  # the turn in OpenAI's form, from chat completions
    meta_info: Mapping[str, Any] = field(default_factory=dict)  # all else that the engine says, but log-probabilities


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
        """Closes the connections."""
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
            try:
                answer = await self._client.post(path, body, headers, called_off=aborted)
            except RequestFailed as failure:
                raise EngineError(str(failure)) from failure
            reply = _parse_reply(answer, track_log_probs)
            if reply.finish != "abort" or aborted():
                return reply
        raise EngineError("The engine aborts a request again and again that slime had not called off.")


def call_params(shared: Mapping[str, Any], room: int, stop_strings: Sequence[str], *, begun: int = 0) -> dict[str, Any]:
    """Sampling parameters of one call: slime's, which siblings share and nobody may change, with ours merged in.

    `room` bounds the caller's max_new_tokens; `stop_strings` join the caller's own stops. `begun`: how many tokens of
    the turn there are already.
    """
    stop = shared.get("stop") or []
    stop = [stop] if isinstance(stop, str) else list(stop)
    asked = shared.get("max_new_tokens")
    most = room if asked is None else min(int(asked) - begun, room)
    return {
        **shared,
        "max_new_tokens": most,
        **(
            {"min_new_tokens": min(max(shared["min_new_tokens"] - begun, 0), most)}
            if shared.get("min_new_tokens")
            else {}
        ),
        "stop": stop + [string for string in stop_strings if string not in stop],
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }


def _parse_reply(answer: Any, track_log_probs: bool) -> Reply:
    """What SGLang answered, by either endpoint; raises EngineError on anything that does not add up."""
    try:
        message = None
        if "choices" in answer:  # a chat completion: the same data in another place
            choice = answer["choices"][0]
            message = dict(choice["message"])
            answer = {"meta_info": choice["meta_info"], "output_ids": choice["meta_info"].get("output_ids")}
        return _reply(answer, answer["meta_info"], track_log_probs, message)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise EngineError(f"The engine's reply is not SGLang's: {error!r}") from error


def _reply(answer: Mapping[str, Any], meta: Mapping[str, Any], track_log_probs: bool, message: dict | None) -> Reply:
    finish = meta["finish_reason"]["type"]
    if finish not in ("stop", "length", "abort"):
        raise EngineError(f"The engine's finish reason is {finish!r}.")
    ids, log_probs = _ids_and_log_probs(answer, meta, finish, track_log_probs)
    version = meta.get("weight_version")
    scores = meta.get("input_token_logprobs")
    return Reply(
        ids,
        log_probs,
        finish,
        ended_turn=type(meta["finish_reason"].get("matched")) is int,
        weight_version=None if version is None else str(version),
        text=str(answer.get("text") or ""),
        prompt_tokens=meta.get("prompt_tokens"),
        prompt_scores=[(item[1], item[0]) for item in scores[1:]] if scores else None,  # the first has no value
        message=message,
        meta_info={key: value for key, value in meta.items() if not key.endswith("_logprobs")},
    )


def _ids_and_log_probs(
    answer: Mapping[str, Any], meta: Mapping[str, Any], finish: str, track_log_probs: bool
) -> tuple[list[int], list[float] | None]:
    ids = answer.get("output_ids")
    log_probs = None
    if track_log_probs:
        # An abort may come without them.
        triples = meta["output_token_logprobs"] if finish != "abort" else meta.get("output_token_logprobs") or []
        log_probs = [float(triple[0]) for triple in triples]
        logged_ids = [triple[1] for triple in triples]
        if ids is not None and ids != logged_ids and finish != "abort":
            raise EngineError(f"output_ids ({len(ids)}) and output_token_logprobs ({len(logged_ids)}) disagree.")
        ids = logged_ids
    if ids is None and finish == "abort":
        ids = []
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise EngineError("The engine's reply has no list of token ids.")
    if not ids and finish != "abort":
        raise EngineError("The engine's reply is empty.")
    if log_probs is not None and not all(map(math.isfinite, log_probs)):
        raise EngineError("The engine reports a log-probability that is not a finite number.")
    return ids, log_probs
