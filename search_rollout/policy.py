"""The policy behind SGLang's `/generate`: ids in, ids out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_rollout.http_client import JsonClient, RequestFailed

PAUSE_S = 1.0  # an engine or router that restarts is back in a minute: eight retries wait about that long


class EngineError(Exception):
    """The engine gave no answer, or one that cannot be trained on; the message says what came."""


@dataclass(frozen=True)
class Reply:
    """One engine call's answer. `log_probs` is None when they were not asked for."""

    ids: list[int]
    log_probs: list[float] | None
    finish: str  # "stop", "length" or "abort"
    ended_turn: bool  # a stop token ended it, not a stop string
    weight_version: str | None


class GeneratePolicy:
    """Client of one router or engine; belongs to one event loop."""

    def __init__(self, url: str, *, timeout_s: float, retries: int, track_log_probs: bool) -> None:
        self._client = JsonClient(url, timeout_s=timeout_s, retries=retries, pause_s=PAUSE_S)
        self._retries = retries
        self._track_log_probs = track_log_probs

    async def complete(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        headers: Mapping[str, str] | None,
        aborted: Callable[[], bool],
    ) -> Reply:
        """Samples one reply to exactly these ids. Raises EngineError when none came that can be trained on.

        A reply that the engine cut short although `aborted()` is false (it does that when its weights are exchanged)
        is dropped, and the same ids are sent again.
        """
        body = {
            "input_ids": list(input_ids),
            "sampling_params": dict(sampling_params),
            "return_logprob": self._track_log_probs,
        }
        for _ in range(self._retries + 1):
            try:
                answer = await self._client.post(body, headers, called_off=aborted)
            except RequestFailed as failure:
                raise EngineError(str(failure)) from failure
            reply = _parse_reply(answer, self._track_log_probs)
            if reply.finish != "abort" or aborted():
                return reply
        raise EngineError("The engine aborts a request again and again that slime had not called off.")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def call_params(shared: Mapping[str, Any], room: int, stop_strings: Sequence[str]) -> dict[str, Any]:
    """Sampling parameters of one call: slime's, which siblings share and nobody may change, with ours merged in.

    `room` bounds the caller's max_new_tokens; `stop_strings` join the caller's own stops.
    """
    stop = shared.get("stop") or []
    stop = [stop] if isinstance(stop, str) else list(stop)
    asked = shared.get("max_new_tokens")
    most = room if asked is None else min(int(asked), room)
    return {
        **shared,
        "max_new_tokens": most,
        **({"min_new_tokens": min(shared["min_new_tokens"], most)} if shared.get("min_new_tokens") else {}),
        "stop": stop + [string for string in stop_strings if string not in stop],
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }


def _parse_reply(answer: Any, track_log_probs: bool) -> Reply:
    """Ids and log-probabilities of SGLang's answer; raises EngineError on anything that does not add up."""
    try:
        meta = answer["meta_info"]
        finish = meta["finish_reason"]["type"]
        ended_turn = type(meta["finish_reason"].get("matched")) is int
        ids = answer.get("output_ids")
        log_probs = None
        if track_log_probs:
            triples = meta.get("output_token_logprobs")
            if triples is None and finish == "abort":
                triples = []  # an abort may come without them
            log_probs = [float(triple[0]) for triple in triples]
            logged_ids = [triple[1] for triple in triples]
            if ids is not None and ids != logged_ids and finish != "abort":
                raise EngineError(f"output_ids ({len(ids)}) and output_token_logprobs ({len(logged_ids)}) disagree.")
            ids = logged_ids
        if ids is None and finish == "abort":
            ids = []
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise EngineError("The engine's reply has no list of token ids.")
        if finish not in ("stop", "length", "abort"):
            raise EngineError(f"The engine's finish reason is {finish!r}.")
        if not ids and finish != "abort":
            raise EngineError("The engine's reply is empty.")
        if log_probs is not None and not all(map(math.isfinite, log_probs)):
            raise EngineError("The engine reports a log-probability that is not a finite number.")
        version = meta.get("weight_version")
        return Reply(ids, log_probs, finish, ended_turn, None if version is None else str(version))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise EngineError(f"The engine's reply is not SGLang's: {error!r}") from error
