"""Returns stored ids, looked up by text or by messages."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from search_rollout.protocols.chat_template import decode, next_turn_ids
from token_router.conversation import parse_conversation, template_errors
from token_router.errors import ApiError, bad_request, json_object
from token_router.token_trie import Path, TokenTrie
from token_router.upstream import TRAJECTORY_HEADER, namespace_of


@dataclass(frozen=True)
class RetrieveRoutes:
    """Both endpoints return the whole trajectory or 404; they never guess ids."""

    tokenizer: Any
    store: TokenTrie

    async def from_text(self, request: web.Request) -> web.Response:
        """POST /retrieve_from_text: the record of exactly this text."""
        text = (await json_object(request)).get("text")
        if not isinstance(text, str):
            raise bad_request("`text` must be a string.")
        path = self.store.whole_text(namespace_of(request), text) if text else Path()
        if path is None:
            raise _not_stored("This text")
        return self._record(path, [])

    async def from_messages(self, request: web.Request) -> web.Response:
        """POST /retrieve_from_messages_template: the record up to an assistant message that was sampled here."""
        body = await json_object(request)
        conversation = parse_conversation(body)
        path = self.store.by_key(conversation.keys(namespace_of(request))[-1])
        if path is None:
            raise _not_stored("This conversation (it must end in an assistant message that was sampled here)")
        opening: list[int] = []
        if body.get("add_generation_prompt"):
            with template_errors():
                opening = next_turn_ids(self.tokenizer, [], path.ids()[-1], **conversation.template_kwargs)
        return self._record(path, opening)

    def _record(self, path: Path, opening: list[int]) -> web.Response:
        """The response; `opening` holds the ids after the path that would begin the next turn."""
        ids = path.ids() + opening
        mask = path.mask() + [0] * len(opening)
        log_probs = path.log_probs()
        return web.json_response(
            {
                "tokens": ids,
                "response": decode(self.tokenizer, ids[mask.index(1) if 1 in mask else len(mask) :]),
                "loss_mask": mask,
                "token_length": len(ids),
                "loss_mask_length": len(mask),
                "rollout_logp": None if log_probs is None else log_probs + [0.0] * len(opening),
            }
        )


def _not_stored(what: str) -> ApiError:
    message = f"{what} is not stored, as a whole, under this request's {TRAJECTORY_HEADER}."
    return ApiError(404, "not_stored", message)
