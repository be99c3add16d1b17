"""What answers the model between its turns: search results and corrections, as ids ready to append."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from search_rollout.chat_template import decode, next_turn_ids
from search_rollout.observation import UNAVAILABLE, neutraliser, observation_ids, render_passages, special_strings
from search_rollout.retrieval import SearchBackend, SearchResult
from search_rollout.xml_protocol import CORRECTION

ABORT_POLL_S = 0.1


class Message(NamedTuple):
    """Text of the environment, encoded once."""

    ids: list[int]
    text: str


class Environment:
    """Shared by all rollouts of an event loop; holds no state of any of them."""

    def __init__(self, tokenizer: Any, search: SearchBackend, max_obs_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._search = search
        self._max_obs_tokens = max_obs_tokens
        self._neutralise = neutraliser(special_strings(tokenizer))

    async def search(self, query: str, aborted: Callable[[], bool]) -> SearchResult | None:
        """The search's result; None as soon as `aborted()` turns true, and the search is dropped."""
        task = asyncio.ensure_future(self._search.search(query))
        try:
            while not task.done() and not aborted():
                await asyncio.wait({task}, timeout=ABORT_POLL_S)
            return task.result() if task.done() else None
        finally:
            task.cancel()

    def observation(self, result: SearchResult) -> Message:
        """The search's result as the model reads it."""
        body = UNAVAILABLE if result.error else render_passages(result.passages, self._neutralise)
        return Message(*observation_ids(self._tokenizer, body, self._max_obs_tokens))

    def correction(self, last_id: int, ended_turn: bool, template_kwargs: Mapping[str, Any]) -> Message:
        """What a valid step is: a user turn if the model ended its own (with `last_id`), else text within it."""
        if ended_turn and self._tokenizer.chat_template:
            ids = next_turn_ids(self._tokenizer, CORRECTION, last_id, **template_kwargs)
        else:
            ids = self._tokenizer.encode(f"\n{CORRECTION}\n", add_special_tokens=False)
        return Message(ids, decode(self._tokenizer, ids))

    async def close(self) -> None:
        """Releases the search backend's connections."""
        await self._search.close()
