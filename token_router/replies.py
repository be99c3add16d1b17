"""A worker's reply to `/generate`, checked as a whole before anything of it is kept."""

import json
import math
from array import array
from dataclasses import dataclass
from typing import Any

from token_router.token_trie import Piece


class UnusableReply(Exception):
    """The reply cannot be stored; the message says why."""


@dataclass(frozen=True)
class Reply:
    """What a worker sampled."""

    text: str | None  # as the worker decoded it; some do not
    ids: list[int]
    log_probs: list[float] | None  # None: the worker does not tell
    token_texts: list[str | None]
    finish: str  # "stop", "length" or "abort"
    meta_info: dict[str, Any]

    def piece(self, text: str) -> Piece:
        """To be stored and found by this text."""
        version = self.meta_info.get("weight_version")
        return Piece(
            text,
            array("i", self.ids),
            sampled=True,
            log_probs=None if self.log_probs is None else array("d", self.log_probs),
            weight_version=None if version is None else str(version),
        )


def parse_reply(body: bytes) -> Reply:
    """The reply in the body of an answer. Raises UnusableReply on anything that does not add up."""
    try:
        reply = json.loads(body)
        meta = reply["meta_info"]
        finish, triples, ids = meta["finish_reason"]["type"], meta.get("output_token_logprobs"), reply.get("output_ids")
        if finish == "abort":
            ids = [] if ids is None else ids
            triples = None if triples is None or len(triples) != len(ids) else triples
        if ids is None and triples is not None:
            ids = [triple[1] for triple in triples]
        if triples is not None and [triple[1] for triple in triples] != ids:
            raise UnusableReply(f"output_ids ({len(ids)}) and output_token_logprobs ({len(triples)}) disagree.")
        log_probs = None if triples is None else [float(triple[0]) for triple in triples]
        token_texts = [None] * len(ids) if triples is None else [triple[2] for triple in triples]
        text = reply.get("text")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UnusableReply(f"it is not in the form of SGLang's: {error!r}") from error
    _check(ids, log_probs, finish, text)
    return Reply(text, ids, log_probs, token_texts, finish, meta)


def _check(ids: Any, log_probs: list[float] | None, finish: Any, text: Any) -> None:
    if finish not in ("stop", "length", "abort"):
        raise UnusableReply(f"its finish reason is {finish!r}.")
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise UnusableReply("it has no list of token ids.")
    if not ids and finish != "abort":
        raise UnusableReply("it is empty.")
    if log_probs is not None and not all(map(math.isfinite, log_probs)):
        raise UnusableReply("a log-probability is not a finite number.")
    if text is not None and not isinstance(text, str):
        raise UnusableReply("its text is not a string.")
