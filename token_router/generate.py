"""SGLang's `/generate` for text or ids: earlier turns go to the worker as the ids that were sampled."""

import json
import logging
from array import array
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from search_rollout.engine.sglang_reply import EngineError, Reply, parse_reply
from search_rollout.protocols.chat_template import decode, encode
from token_router.errors import bad_request, json_object
from token_router.token_trie import Path, Piece, TokenTrie
from token_router.upstream import Upstream, namespace_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateRoute:
    """Handles one request with text in three steps:

    1. Find the longest stored prefix of the text that ends in a reply. Use its ids, and encode the rest.
    2. Send the worker `input_ids` instead of `text`, and every other field unchanged.
    3. Store its reply under the text plus the reply's text, and return it unchanged.

    With `input_ids`, the first step compares ids, and the text is what they decode to.
    """

    tokenizer: Any
    store: TokenTrie
    upstream: Upstream

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await json_object(request)
        raw = await request.read()
        prompt = self._prompt(namespace_of(request), body)
        if prompt is None:
            return await self.upstream.relay(request)
        if body.get("text") is not None:
            rest = {name: value for name, value in body.items() if name != "text"}
            raw = json.dumps({**rest, "input_ids": prompt.ids()}).encode()
        answer = await self.upstream.generate(request, raw)
        if answer.status == 200:
            self._keep(namespace_of(request), prompt, answer)
        return answer

    def _prompt(self, namespace: str, body: dict[str, Any]) -> Path | None:
        """The prompt as pieces; None if it is not one text or one list of ids: the request is then only relayed."""
        text, ids = body.get("text"), body.get("input_ids")
        if text is not None and ids is not None:
            raise bad_request("Give text or input_ids, not both.")
        if isinstance(text, str):
            return self._text_prompt(namespace, text)
        if isinstance(ids, list) and ids and not isinstance(ids[0], list):
            return self._ids_prompt(namespace, ids)
        if text is None and ids is None and "input_embeds" not in body:
            raise bad_request("Give text or input_ids.")
        return None

    def _text_prompt(self, namespace: str, text: str) -> Path:
        known = self.store.longest(namespace, text)
        rest = text[sum(len(piece.text) for piece in known.pieces) :]
        try:
            return known.extended(Piece(rest, array("i", encode(self.tokenizer, rest))))
        except (TypeError, UnicodeError) as error:  # half a surrogate pair
            raise bad_request(f"The text cannot be encoded: {error}") from error

    def _ids_prompt(self, namespace: str, ids: list[Any]) -> Path:
        try:
            whole = array("i", ids)
            known = self.store.longest(namespace, whole)
            rest = whole[len(known.ids()) :]
            return known.extended(Piece(decode(self.tokenizer, rest), rest))
        except (TypeError, OverflowError) as error:
            raise bad_request(f"input_ids must be a list of token ids: {error}") from error

    def _keep(self, namespace: str, prompt: Path, answer: web.Response) -> None:
        try:
            reply = read_reply(answer.body)
        except EngineError as error:
            logger.warning("passed on a /generate reply without storing it: %s", error)
            return
        if reply.finish != "abort":
            text = decode(self.tokenizer, reply.ids) if reply.text is None else reply.text
            self.store.add(namespace, [*prompt.pieces, piece_of(reply, text)])


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
