"""Converts a worker's reply to the form in which the token store keeps it."""

import json
from array import array

from search_rollout.engine.sglang_reply import EngineError, Reply, parse_reply
from token_router.token_trie import Piece


class UnusableReply(Exception):
    """The reply cannot be stored; the message says why."""


def read_reply(body: bytes) -> Reply:
    """Parses the body of a worker's response. Raises UnusableReply if it is malformed or inconsistent."""
    try:
        return parse_reply(json.loads(body))
    except (ValueError, RecursionError, EngineError) as error:
        raise UnusableReply(str(error)) from error


def piece_of(reply: Reply, text: str) -> Piece:
    """The reply as a piece that is stored and found by this text."""
    return Piece(
        text,
        array("i", reply.ids),
        sampled=True,
        log_probs=None if reply.log_probs is None else array("d", reply.log_probs),
        weight_version=reply.weight_version,
    )
