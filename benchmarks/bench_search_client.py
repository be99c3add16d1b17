"""CPU that one search costs the client: the plugin's searcher, beside a new session for each query.

    python -m benchmarks.bench_search_client [--json FILE]

1,000 searches, 256 at once, against a retriever on this machine that answers at once, in a process of its own:

    searcher       Searcher and LocalRetriever, as rollouts use them: limits, repeats, circuit breaker
    cache          the same with SEARCH_CACHE, when every answer is known
    new session    the usual style: aiohttp.ClientSession() around each query

The figures are this process's CPU time and the time on the clock, for each search; the ways are measured in turns.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import numpy as np
from aiohttp import web

from benchmarks.reporting import Report, parser, run
from benchmarks.servers import apart, serve
from search_rollout.search.cache import SearchCache
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.search.searcher import Searcher

SEARCHES, CONCURRENT, RUNS = 1000, 256, 7
DOCUMENT = '"A place"\n' + "The place lies in the highlands in the south of the country and was founded in 1899. " * 6

Search = Callable[[str], Awaitable[SearchResult]]


def retriever(pipe: Connection) -> None:
    """The other process: answers with three documents a query."""
    found = [{"document": {"id": "1", "contents": DOCUMENT}, "score": 0.5}] * 3

    async def retrieve(request: web.Request) -> web.Response:
        return web.json_response({"result": [found for _ in (await request.json())["queries"]]})

    serve({"/retrieve": retrieve}, pipe)


def by_new_sessions(url: str) -> Search:
    """The usual style, with the usual limit on queries at once."""
    places = asyncio.Semaphore(CONCURRENT)

    async def search(query: str) -> SearchResult:
        body = {"queries": [query], "topk": 3, "return_scores": True}
        async with places, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            async with session.post(f"{url}/retrieve", json=body) as response:
                response.raise_for_status()
                documents = (await response.json())["result"][0]
        return SearchResult(query, [Passage.from_contents(item["document"]["contents"]) for item in documents])

    return search


async def cost(search: Search) -> tuple[float, float]:
    """(CPU, clock) microseconds of one search, 256 clients that each wait for their answer."""
    left = (f"where does place {number} lie, and since when?" for number in range(SEARCHES))

    async def client() -> None:
        for query in left:
            result = await search(query)
            assert len(result.passages) == 3, result.error

    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(CONCURRENT)))
    cpu, clock = time.process_time() - began_cpu, time.perf_counter() - began
    return 1e6 * cpu / SEARCHES, 1e6 * clock / SEARCHES


async def compare(url: str, cache_file: str) -> dict[str, list[tuple[float, float]]]:
    """Every way's figures, run by run; the first run, which opens connections, is left out."""

    def searcher(cache: SearchCache | None) -> Searcher:
        source = LocalRetriever(url, topk=3, timeout_s=60.0)
        return Searcher([source], concurrency=CONCURRENT, timeout_s=60.0, retries=3, cache=cache)

    plain, cached = searcher(None), searcher(SearchCache(cache_file, "bench", max_age_s=3600.0))
    ways = {"searcher": plain.search, "new session": by_new_sessions(url), "cache": cached.search}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(RUNS + 1):
        for name, search in ways.items():
            found[name].append(await cost(search))
    await plain.close()
    await cached.close()
    return {name: runs[1:] for name, runs in found.items()}


def measure(report: Report) -> None:
    """A row for each way."""
    with apart(retriever) as pipe, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(compare(f"http://127.0.0.1:{pipe.recv()}", str(Path(folder) / "cache.db")))
    costs = {name: np.median(runs, axis=0).tolist() for name, runs in found.items()}
    usual_cpu = costs["new session"][0]
    report.table(
        f"Microseconds of one search, {SEARCHES} searches, {CONCURRENT} at once; median of {RUNS} runs of each",
        [
            {"way": name, "CPU of the client": cpu, "clock": clock, "new session / this, CPU": usual_cpu / cpu}
            for name, (cpu, clock) in costs.items()
        ],
    )
    report.bound("a new session costs {} times the searcher", usual_cpu / costs["searcher"][0], least=3.0)


if __name__ == "__main__":
    run(measure, parser(__doc__))
