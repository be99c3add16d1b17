"""A server with the /retrieve API whose passages depend on the current question.

A query alone does not identify its question. So each question that is asked at the same time gets a slot with its own
URL, and its rollout gets that URL as its only retriever.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from evaluation.questions import Question

Find = Callable[[Question, str, int], Sequence[str]]  # question, query, maximum → passages as a corpus has `contents`


@asynccontextmanager
async def passage_server(find: Find) -> AsyncIterator[Callable[[int, Question], str]]:
    """Serves on a free loopback port. Gives slot, question → URL of its retriever, valid until the slot is reused."""
    questions: dict[int, Question] = {}  # by slot

    async def retrieve(request: web.Request) -> web.Response:
        question, body = questions[int(request.match_info["slot"])], await request.json()
        found = [find(question, query, body["topk"]) for query in body["queries"]]
        return web.json_response(
            {"result": [[{"document": {"contents": text}, "score": 0.0} for text in one] for one in found]}
        )

    def url(slot: int, question: Question) -> str:
        questions[slot] = question
        return f"http://127.0.0.1:{runner.addresses[0][1]}/{slot}"

    app = web.Application()
    app.router.add_post(r"/{slot:\d+}/retrieve", retrieve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield url
    finally:
        await runner.cleanup()
