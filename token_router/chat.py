"""OpenAI's chat completions: earlier turns go to the worker as the sampled ids, never rendered again."""

import json
from array import array
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from search_rollout.protocols.chat_template import decode, encode, next_turn_ids, render_prompt, strip_end
from search_rollout.protocols.tool_formats import ToolFormat
from token_router.conversation import Conversation, next_key, parse_conversation, parse_message, template_errors
from token_router.errors import bad_request, json_object
from token_router.generate import piece_of, read_reply
from token_router.openai import assistant_message, completion, worker_fields
from token_router.token_trie import Path, Piece, TokenTrie
from token_router.upstream import Upstream, namespace_of


@dataclass(frozen=True)
class ChatRoute:
    """Handles one request in three steps:

    1. Find the longest stored prefix of the messages that ends in a sampled assistant message. Use its ids, and render
       the messages after it with the template. If nothing is stored, render all of them.
    2. Send the ids to a worker's `/generate`.
    3. Store the reply under the messages plus the assistant message that the caller gets.
    """

    tokenizer: Any
    store: TokenTrie
    upstream: Upstream
    tool_format: ToolFormat | None

    async def complete(self, request: web.Request) -> web.Response:
        body = await json_object(request)
        conversation, fields = parse_conversation(body), worker_fields(body)
        if conversation.tools and self.tool_format is None:
            raise bad_request(
                "The model's chat template uses no known tool-call format; start the router with --tool-call-format.",
                "no_tool_format",
            )
        form = self.tool_format.with_tools(conversation.tools) if self.tool_format and conversation.tools else None
        keys = conversation.keys(namespace_of(request))
        prompt = self._prompt(conversation, keys)
        ids = prompt.ids()
        answer = await self.upstream.generate(request, json.dumps({"input_ids": ids, **fields}).encode())
        if answer.status != 200:
            return answer
        reply = read_reply(answer.body)
        text = decode(self.tokenizer, reply.ids)
        thinking = prompt.pieces[-1].text.rstrip().endswith("<think>")
        message = assistant_message(strip_end(self.tokenizer, text), form, think_opened=thinking)
        if reply.finish != "abort":
            key = next_key(keys[-1], parse_message(message))
            self.store.add(namespace_of(request), [*prompt.pieces, piece_of(reply, text)], key)
        return web.json_response(completion(self.tokenizer, body, len(ids), reply, message))

    def _prompt(self, conversation: Conversation, keys: list[str]) -> Path:
        """The prompt as pieces; the template has just rendered the last one."""
        known, rest = Path(), conversation.messages
        for end in range(len(rest), 0, -1):  # the longest stored prefix of the messages first
            if path := self.store.by_key(keys[end - 1]):
                known, rest = path, rest[end:]
                break
        kwargs = conversation.template_kwargs
        with template_errors():
            if known.pieces:
                ids = next_turn_ids(self.tokenizer, rest, known.ids()[-1], **kwargs)
                text = decode(self.tokenizer, ids)
            else:
                text = render_prompt(self.tokenizer, rest, conversation.tools, **kwargs)
                ids = encode(self.tokenizer, text)
        return Path((*known.pieces, Piece(text, array("i", ids))))
