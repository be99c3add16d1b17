"""A server with the /retrieve API whose passages depend on the current question.

A query alone does not identify its question. So each question that is asked at the same time gets a slot with its own
URL, and its rollout gets that URL as its only retriever.
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
        """The URL of `question`'s retriever, valid until the slot is reused."""
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
