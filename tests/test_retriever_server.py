"""The real app, spoken to by a real HTTP client in this process, around a fake encoder."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from retriever_fakes import ColourEncoder, write_corpus, write_flat_index

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.index import PassageIndex
from local_dense_retriever.retrieval_server import create_app
from local_dense_retriever.retriever import Hit, Retriever

TEXTS = ["red", "green", "blue", "red red blue"]


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    index = write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(TEXTS))
    return Retriever(ColourEncoder(), PassageIndex(index), Corpus(write_corpus(tmp_path / "c.jsonl", TEXTS)))


def client_of(retriever: Retriever) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(retriever, default_topk=3))
    return httpx.AsyncClient(transport=transport, base_url="http://retriever")


async def test_without_scores_a_result_is_a_list_of_documents_per_query(retriever: Retriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red", "green"], "topk": 1})
    assert reply.status_code == 200
    assert reply.json() == {"result": [[{"id": "p0", "contents": "red"}], [{"id": "p1", "contents": "green"}]]}


async def test_with_scores_each_document_has_its_score_beside_it(retriever: Retriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red"], "topk": 2, "return_scores": True})
    [[first, second]] = reply.json()["result"]
    assert first == {"document": {"id": "p0", "contents": "red"}, "score": 1.0}
    assert second["document"] == {"id": "p3", "contents": "red red blue"}
    assert second["score"] == pytest.approx(2 / 5**0.5)  # (1, 0, 0) · (2, 0, 1) / sqrt(5)


@pytest.mark.parametrize("body", [{"queries": ["red"]}, {"queries": ["red"], "topk": None}])
async def test_without_a_topk_the_servers_own_holds(retriever: Retriever, body: dict[str, Any]) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json=body)
    assert len(reply.json()["result"][0]) == 3


async def test_a_topk_above_the_corpus_gives_every_document_once(retriever: Retriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red"], "topk": 100})
    assert sorted(document["id"] for document in reply.json()["result"][0]) == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "queries", "required"),
        ({"queries": []}, "queries", "at least 1 item"),
        ({"queries": "red"}, "queries", "valid list"),
        ({"queries": ["red"] * 513}, "queries", "at most 512 items"),
        ({"queries": ["red", " \n"]}, "1", "the query is blank"),
        ({"queries": ["x" * 10_001]}, "0", "at most 10000 characters"),
        ({"queries": ["red"], "topk": 0}, "topk", "greater than or equal to 1"),
        ({"queries": ["red"], "topk": 101}, "topk", "less than or equal to 100"),
    ],
)
async def test_a_bad_request_is_refused_with_422_and_a_reason(
    retriever: Retriever, body: dict[str, Any], field: str, message: str
) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json=body)
    assert reply.status_code == 422
    [problem] = reply.json()["detail"]
    assert str(problem["loc"][-1]) == field
    assert message in problem["msg"]
    assert len(reply.content) < 500  # a long query is not sent back


async def test_half_a_surrogate_pair_is_refused_and_not_a_server_error(retriever: Retriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", content=b'{"queries": ["\\ud83d"]}')
    assert reply.status_code == 422


async def test_health_and_documentation_are_served(retriever: Retriever) -> None:
    async with client_of(retriever) as client:
        health = await client.get("/health")
        docs = await client.get("/docs")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert docs.status_code == 200


async def test_health_answers_while_a_search_is_running(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    searching, finish = threading.Event(), threading.Event()

    def slow(queries: list[str], topk: int) -> list[list[Hit]]:
        searching.set()
        assert finish.wait(timeout=10)
        return [[] for _ in queries]

    monkeypatch.setattr(retriever, "search", slow)
    async with client_of(retriever) as client:
        search = asyncio.create_task(client.post("/retrieve", json={"queries": ["red"]}))
        await asyncio.to_thread(searching.wait, 10)
        health = await client.get("/health")
        assert health.status_code == 200 and not search.done()
        finish.set()
        assert (await search).json() == {"result": [[]]}
