"""Converts a worker's reply to the form in which the token store keeps it."""

import json
from array import array
from typing import Any

from search_rollout.engine.sglang_reply import EngineError, Reply, parse_reply
from token_router.token_trie import Piece


def read_reply(body: Any) -> Reply:
    """Parses the body of a worker's response. Raises EngineError if it is malformed or inconsistent."""
    try:
        return parse_reply(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise EngineError(str(error)) from error


def piece_of(reply: Reply, text: str) -> Piece:
    """The reply as a piece that is stored and found by this text."""
    return Piece(
        text,
        array("i", reply.ids),
        sampled=True,
        log_probs=None if reply.log_probs is None else array("d", reply.log_probs),
        weight_version=reply.weight_version,
    )
