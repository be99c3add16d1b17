"""The real app, spoken to by a real HTTP client in this process, around a retriever of colours."""

import asyncio
import gzip
import re
import threading
import time
from typing import Any

import httpx
import pytest
from retriever_fakes import ColourRetriever, client_of

from local_dense_retriever import app as app_module
from local_dense_retriever import metrics as metrics_module
from local_dense_retriever.app import create_app
from local_dense_retriever.batcher import Limits
from local_dense_retriever.loading import Report
from local_dense_retriever.searcher import Hit
from local_dense_retriever.service import Service


@pytest.fixture
def retriever() -> ColourRetriever:
    return ColourRetriever()


async def test_without_scores_a_result_is_a_list_of_documents_per_query(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red", "green"], "topk": 1})
    assert reply.status_code == 200
    assert reply.json() == {"result": [[{"id": "p0", "contents": "red"}], [{"id": "p1", "contents": "green"}]]}


async def test_with_scores_each_document_comes_with_its_score(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red"], "topk": 2, "return_scores": True})
    [[first, second]] = reply.json()["result"]
    assert first == {"document": {"id": "p0", "contents": "red"}, "score": 1.0}
    assert second["document"] == {"id": "p3", "contents": "red red blue"}
    assert second["score"] == pytest.approx(2 / 5**0.5)  # (1, 0, 0) · (2, 0, 1) / sqrt(5)


@pytest.mark.parametrize("body", [{"queries": ["red"]}, {"queries": ["red"], "topk": None}])
async def test_without_a_topk_the_servers_own_holds(retriever: ColourRetriever, body: dict[str, Any]) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json=body)
    assert len(reply.json()["result"][0]) == 3


async def test_a_topk_above_the_corpus_gives_every_document_once(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red"], "topk": 100})
    assert sorted(document["id"] for document in reply.json()["result"][0]) == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "queries", "required"),
        ({"queries": []}, "queries", "at least 1 item"),
        ({"queries": "red"}, "queries", "valid array"),
        ({"queries": ["red"] * 513}, "queries", "at most 512 items"),
        ({"queries": ["red", " \n"]}, "1", "the query is blank"),
        ({"queries": ["red", ""]}, "1", "at least 1 character"),
        ({"queries": ["x" * 10_001]}, "0", "at most 10000 characters"),
        ({"queries": ["red"], "topk": 0}, "topk", "greater than or equal to 1"),
        ({"queries": ["red"], "topk": 101}, "topk", "less than or equal to 100"),
    ],
)
async def test_a_bad_request_is_refused_with_422_and_a_reason(
    retriever: ColourRetriever, body: dict[str, Any], field: str, message: str
) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json=body)
    assert reply.status_code == 422
    [problem] = reply.json()["detail"]
    assert str(problem["loc"][-1]) == field
    assert message in problem["msg"]
    assert len(reply.content) < 500  # a long query is not sent back


@pytest.mark.parametrize(
    "body",
    [
        b'{"queries": ["\\ud83d"]}',  # half a surrogate pair
        b'{"queries": ["\xff"]}',  # not UTF-8
        b"",
        b"{",
        b"[" * 100_000,
        b"[]",
        b'{"queries": [' + b"1," * 100_000 + b"1]}",
    ],
)
async def test_a_body_that_is_not_a_request_is_refused_shortly(retriever: ColourRetriever, body: bytes) -> None:
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", content=body)
    assert reply.status_code == 422 and reply.json()["detail"][0]["loc"][0] == "body"
    assert len(reply.content) < 2000


async def test_a_body_above_the_bound_is_refused_before_it_is_parsed(
    retriever: ColourRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", 100)
    async with client_of(retriever) as client:
        assert (await client.post("/retrieve", content=b"x" * 100)).status_code == 422
        reply = await client.post("/retrieve", content=b"x" * 101)
    assert reply.status_code == 413 and "larger than 100 bytes" in reply.json()["detail"]


async def test_text_beyond_ascii_arrives_unchanged(retriever: ColourRetriever) -> None:
    retriever.texts = ("rød 漢字 \u2028 \x00 😀",)
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["😀"]})
    assert reply.json()["result"][0][0]["contents"] == retriever.texts[0]


# ---- Loading, and failing --------------------------------------------------------------------------------------------


async def test_until_all_is_loaded_it_is_alive_but_not_ready_and_says_what_is_loading(
    retriever: ColourRetriever,
) -> None:
    reported, finish = threading.Event(), threading.Event()

    def load(report: Report) -> Any:
        report("the index wiki.index")
        reported.set()
        assert finish.wait(timeout=10)
        return retriever

    service = Service(Limits())
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://retriever") as client:
        loading = asyncio.create_task(service.load(load))
        await asyncio.to_thread(reported.wait, 10)
        assert (await client.get("/health")).json() == {"status": "ok"}
        ready, page = await client.get("/ready"), await client.get("/docs")
        assert (ready.status_code, page.status_code) == (503, 503)
        assert "still loading the index wiki.index" in page.text
        assert re.fullmatch(r"the index wiki\.index, for \d+ s", ready.json()["loading"])
        early = await client.post("/retrieve", json={"queries": ["red"]})
        assert (early.status_code, early.headers["Retry-After"]) == (503, "5")
        assert "still loading the index wiki.index" in early.json()["detail"]

        finish.set()
        await loading
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", **retriever.describe()})
        assert (await client.get("/docs")).status_code == 200
        assert (await client.post("/retrieve", json={"queries": ["red"]})).status_code == 200
    service.close()


class HeldRetriever(ColourRetriever):
    """Its searches wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.searching, self.finish = threading.Event(), threading.Event()

    def search(self, queries: Any, topk: int) -> list[list[Hit]]:
        self.searching.set()
        assert self.finish.wait(timeout=10)
        return super().search(queries, topk)


async def test_health_answers_while_a_search_is_running() -> None:
    retriever = HeldRetriever()
    async with client_of(retriever) as client:
        search = asyncio.create_task(client.post("/retrieve", json={"queries": ["red"]}))
        await asyncio.to_thread(retriever.searching.wait, 10)
        assert (await client.get("/health")).status_code == 200 and not search.done()
        retriever.finish.set()
        assert (await search).status_code == 200


async def test_a_full_queue_is_503_with_the_time_to_wait() -> None:
    retriever = HeldRetriever()
    async with client_of(retriever, Limits(max_queue=2)) as client:
        running = asyncio.create_task(client.post("/retrieve", json={"queries": ["red"]}))
        await asyncio.to_thread(retriever.searching.wait, 10)
        refused = await client.post("/retrieve", json={"queries": ["a", "b", "c"]})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        retriever.finish.set()
        assert (await running).status_code == 200
        assert (await client.post("/retrieve", json={"queries": ["a", "b"]})).status_code == 200


async def test_a_search_that_raises_is_500_and_its_reason_stays_in_the_log(
    retriever: ColourRetriever, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(queries: list[str], topk: int) -> list[list[Hit]]:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(retriever, "search", fail)
    async with client_of(retriever) as client:
        reply = await client.post("/retrieve", json={"queries": ["red"]})
    assert reply.status_code == 500 and "log" in reply.json()["detail"] and "CUDA" not in reply.text
    assert "CUDA out of memory" in caplog.text


async def test_a_query_that_cannot_be_searched_is_422_and_fails_no_other(
    retriever: ColourRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = retriever.search

    def search(queries: list[str], topk: int) -> list[list[Hit]]:
        if "poison" in queries:
            raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")
        return real(queries, topk)

    monkeypatch.setattr(retriever, "search", search)
    async with client_of(retriever) as client:
        asked = [["red"], ["green", "poison"], ["blue"], ["poison"]]
        replies = await asyncio.gather(*(client.post("/retrieve", json={"queries": queries}) for queries in asked))
    assert [reply.status_code for reply in replies] == [200, 422, 200, 422]
    [problem] = replies[1].json()["detail"]
    assert problem["loc"] == ["body", "queries", 1] and "this query fails" in problem["msg"]


async def test_a_body_in_gzip_is_refused_and_no_error_of_the_server(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        for body in (b"\x1f\x8bbroken", gzip.compress(b'{"queries": ["red"]}')):
            reply = await client.post("/retrieve", content=body, headers={"Content-Encoding": "gzip"})
            assert reply.status_code == 422


async def test_the_largest_body_blocks_the_loop_for_a_moment_only(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        worst = 0.0
        for start, item in ((b"", b"1,"), (b"", b'"a",'), (b'"a"],"x":[', b"[],")):
            filling = item * ((app_module.MAX_BODY_BYTES - 40) // len(item))
            began = time.process_time()
            reply = await client.post("/retrieve", content=b'{"queries":[' + start + filling[:-1] + b"]}")
            worst = max(worst, time.process_time() - began)
            assert reply.status_code in (200, 422)
    assert worst < 0.6  # 0.2 on an idle machine; 28 MB took 2.4


# ---- The other routes, and the key -----------------------------------------------------------------------------------


async def test_health_and_documentation_are_served(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        page = await client.get("/docs")
        assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/html")
        assert not re.search(r"(?:src|href)=[^>]*//", page.text)  # nothing from a CDN
        described = (await client.get("/openapi.json")).json()["paths"]["/retrieve"]["post"]
    assert set(described["responses"]) == {"200", "401", "408", "413", "422", "500", "503"}
    assert described["requestBody"]["content"]["application/json"]["schema"]["required"] == ["queries"]


async def test_metrics_count_what_happened(retriever: ColourRetriever) -> None:
    async with client_of(retriever) as client:
        for queries in (["red", "blue"], ["red", "green"], []):
            await client.post("/retrieve", json={"queries": queries})
        text = (await client.get("/metrics")).text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    expected = {
        'retriever_requests_total{status="200"}': 2,
        'retriever_requests_total{status="422"}': 1,
        'retriever_queries_total{how="queued"}': 3,  # red, blue, green
        'retriever_queries_total{how="cached"}': 1,  # red
        "retriever_batch_queries_count": 2,
        "retriever_batch_queries_sum": 3,
        "retriever_batch_seconds_count": 2,
        "retriever_request_seconds_count": 3,
        "retriever_cache_queries": 3,
        "retriever_queue_queries": 0,
        "retriever_ready": 1,
        'retriever_index{what="rows"}': 4,
        'retriever_index{what="bytes"}': 48,
    }
    assert {name: float(figures[name]) for name in expected} == expected
    assert float(figures["process_resident_memory_bytes"]) > 0


async def test_without_prometheus_client_metrics_say_what_to_install(
    retriever: ColourRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "prometheus_client", None)
    async with client_of(retriever) as client:
        assert (await client.post("/retrieve", json={"queries": ["red"]})).status_code == 200
        reply = await client.get("/metrics")
    assert reply.status_code == 501 and "pip install prometheus-client" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        (b"Bearer wrong", 401),
        ("Bearer sésame".encode(), 200),
        ("bearer sésame".encode(), 200),
        ("Basic sésame".encode(), 401),
        (b"Bearer ", 401),
        (b"Bearer \xff", 401),
        (b"\xff", 401),
    ],
)
async def test_with_a_key_only_clients_that_send_it_may_search_and_read_the_metrics(
    retriever: ColourRetriever, authorization: bytes | None, status: int
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with client_of(retriever, api_key="sésame") as client:
        reply = await client.post("/retrieve", json={"queries": ["red"]}, headers=headers)
        for path in ("/health", "/ready", "/docs"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/metrics", headers=headers)).status_code == status
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["WWW-Authenticate"] == "Bearer" and "key" in reply.json()["detail"]
