"""A retriever whose passages depend on the question that is asked, behind the wire of /retrieve.

A query alone does not say which question it belongs to. So the server has a URL for each of `slots` questions that are
asked at the same time, and a rollout is given its slot's URL as its only retriever.
"""

from collections.abc import Callable, Sequence
from typing import Self

from aiohttp import web

from evaluation.questions import Question

Find = Callable[[Question, str, int], Sequence[str]]  # question, query, maximum → passages as a corpus has `contents`
MAX_BODY = 2**24  # bytes of a request


class PassageServer:
    """`async with PassageServer(find) as server`; listens on a free loopback port until the block ends."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._questions: dict[int, Question] = {}  # by slot

    def url(self, slot: int, question: Question) -> str:
        """The retriever of `question`, until the slot is given to another."""
        self._questions[slot] = question
        return f"http://127.0.0.1:{self._port}/{slot}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(r"/{slot:\d+}/retrieve", self._retrieve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _retrieve(self, request: web.Request) -> web.Response:
        question, body = self._questions[int(request.match_info["slot"])], await request.json()
        found = [self._find(question, query, body["topk"]) for query in body["queries"]]
        return web.json_response(
            {"result": [[{"document": {"contents": text}, "score": 0.0} for text in one] for one in found]}
        )
