"""What SGLang replies to `/generate`, or a token router to `/v1/chat/completions`: the one reading of that wire.

The plugin and the token router both read replies here. Nothing of a reply is used unless all of it adds up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class EngineError(Exception):
    """The engine gave no answer, or one that cannot be trained on; the message describes it."""


@dataclass(frozen=True)
class Reply:
    ids: list[int]  # (T,) as sampled
    log_probs: list[float] | None  # (T,) None: the engine did not report any
    finish: str  # "stop", "length" or "abort"
    ended_turn: bool = False  # a stop token ended it, not a stop string
    weight_version: str | None = None
    text: str | None = None  # as the engine decoded it
    prompt_tokens: int | None = None  # how many ids the engine read
    prompt_scores: list[tuple[int, float]] | None = None  # (id, log-probability) from logprob_start_len + 1 on
    message: dict[str, Any] | None = None  # the turn in OpenAI's form, from chat completions
    meta_info: Mapping[str, Any] = field(default_factory=dict)  # as it came

    @property
    def token_texts(self) -> list[str | None]:
        """(T,) each token's text where the engine reported it."""
        if self.log_probs is None:
            return [None] * len(self.ids)
        return [text for _, _, text in self.meta_info["output_token_logprobs"]]

    @property
    def facts(self) -> dict[str, Any]:
        """`meta_info` without what is one value per token."""
        return {key: value for key, value in self.meta_info.items() if not key.endswith("_logprobs")}

    def scores_of(self, ids: Sequence[int]) -> list[float]:
        """The engine's log-probabilities of the prompt's last ids. Raises EngineError if they are not there."""
        scores = self.prompt_scores or []
        if [token for token, _ in scores] != list(ids):
            raise EngineError(f"LOSS_MASK_MODE=simple: {len(ids)} ids were to be scored, {len(scores)} came.")
        log_probs = [log_prob for _, log_prob in scores]
        if not all(isinstance(log_prob, float) and math.isfinite(log_prob) for log_prob in log_probs):
            raise EngineError("LOSS_MASK_MODE=simple: the engine scored an observation with no finite number.")
        return log_probs


def parse_reply(answer: Any) -> Reply:
    """The reply in an answer's JSON, of either endpoint. Raises EngineError on anything that does not add up."""
    try:
        message = None
        if "choices" in answer:  # a chat completion: the same data in another position
            choice = answer["choices"][0]
            message = dict(choice["message"])
            answer = {"meta_info": choice["meta_info"], "output_ids": choice["meta_info"].get("output_ids")}
        return _read(answer, answer["meta_info"], message)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise EngineError(f"The engine's reply is not SGLang's: {error!r}") from error


def _read(answer: Mapping[str, Any], meta: Mapping[str, Any], message: dict[str, Any] | None) -> Reply:
    finish = meta["finish_reason"]["type"]
    if finish not in ("stop", "length", "abort"):
        raise EngineError(f"The engine's finish reason is {finish!r}.")
    triples = meta.get("output_token_logprobs")
    logged = None if triples is None else [token for _, token, _ in triples]
    ids = _ids(answer.get("output_ids"), logged, finish)
    # An abort may come with fewer log-probabilities than ids.
    log_probs = None if triples is None or logged != ids else [float(triple[0]) for triple in triples]
    if log_probs is not None and not all(map(math.isfinite, log_probs)):
        raise EngineError("The engine reports a log-probability that is not a finite number.")
    text = answer.get("text")
    if text is not None and not isinstance(text, str):
        raise EngineError("The text of the engine's reply is not a string.")
    version = meta.get("weight_version")
    scores = meta.get("input_token_logprobs")
    return Reply(
        ids,
        log_probs,
        finish,
        ended_turn=type(meta["finish_reason"].get("matched")) is int,
        weight_version=None if version is None else str(version),
        text=text,
        prompt_tokens=meta.get("prompt_tokens"),
        prompt_scores=[(item[1], item[0]) for item in scores[1:]] if scores else None,  # the first has no value
        message=message,
        meta_info=meta,
    )


def _ids(ids: Any, logged: list[Any] | None, finish: str) -> list[int]:
    """The sampled ids; `logged` are those that came with log-probabilities. An abort may come without any."""
    if ids is None:
        ids = logged if finish != "abort" else logged or []
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int} or not all(0 <= token < 2**31 for token in ids):
        raise EngineError("The engine's reply has no list of token ids.")
    if finish != "abort" and not ids:
        raise EngineError("The engine's reply is empty.")
    if finish != "abort" and logged not in (None, ids):
        raise EngineError(f"output_ids ({len(ids)}) and output_token_logprobs ({len(logged)}) disagree.")
    return ids
