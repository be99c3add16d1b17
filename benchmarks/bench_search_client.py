"""CPU that one search costs the client: the plugin's searcher, beside a new session for each query.

    python -m benchmarks.bench_search_client [--json FILE]

1,000 searches, 256 at once, against a retriever on this machine that answers at once, in a process of its own:

    searcher       Searcher and LocalRetriever, as rollouts use them: limits, repeats, circuit breaker
    cache          the same with SEARCH_CACHE, when every answer is known
    new session    the usual style: aiohttp.ClientSession() around each query

The figures are this process's CPU time and the time on the clock, for each search; the ways are measured in turns.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from benchmarks.reporting import finish, parser, print_table
from benchmarks.servers import apart
from search_rollout.search.cache import SearchCache
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.passage import Passage
from search_rollout.search.searcher import Searcher

SEARCHES, CONCURRENT, RUNS = 1000, 256, 7
DOCUMENT = '"A place"\n' + "The place lies in the highlands in the south of the country and was founded in 1899. " * 6
LEAST_RATIO = 3.0

Search = Callable[[str], Awaitable[list[Passage]]]


# ---- The other process: a retriever that does next to nothing -------------------------------------------------------


class Retriever(asyncio.Protocol):
    """Answers each POST with three documents a query, without a framework: the client is what is measured."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        found_for_each = [{"document": {"id": "1", "contents": DOCUMENT}, "score": 0.5}] * 3
        body = json.dumps({"result": [found_for_each for _ in json.loads(rest[:length])["queries"]]}).encode()
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(b"HTTP/1.1 200 OK\r\n" + fields.encode() + body)


def serve(pipe: Connection) -> None:
    """Sends its port."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Retriever, "127.0.0.1", 0, backlog=2048)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


# ---- The three ways to search ----------------------------------------------------------------------------------------


def by_new_sessions(url: str) -> Search:
    """The usual style, with the usual limit on queries at once."""
    places = asyncio.Semaphore(CONCURRENT)

    async def search(query: str) -> list[Passage]:
        body = {"queries": [query], "topk": 3, "return_scores": True}
        async with places, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            async with session.post(f"{url}/retrieve", json=body) as response:
                response.raise_for_status()
                documents = (await response.json())["result"][0]
        return [Passage.from_contents(item["document"]["contents"]) for item in documents]

    return search


def by_searcher(searcher: Searcher) -> Search:
    """As rollouts do."""

    async def search(query: str) -> list[Passage]:
        result = await searcher.search(query)
        assert result.error is None, result.error
        return result.passages

    return search


async def measure(search: Search, queries: list[str]) -> tuple[float, float]:
    """(CPU, clock) microseconds of one search, 256 clients that each wait for their answer."""
    left = iter(queries)

    async def client() -> None:
        for query in left:
            passages = await search(query)
            assert len(passages) == 3

    began, began_cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(CONCURRENT)))
    cpu, clock = time.process_time() - began_cpu, time.perf_counter() - began
    return 1e6 * cpu / len(queries), 1e6 * clock / len(queries)


async def compare(url: str, cache_file: str) -> dict[str, list[tuple[float, float]]]:
    """Every way's figures, run by run; the first run, which opens connections, is left out."""

    def searcher(cache: SearchCache | None) -> Searcher:
        source = LocalRetriever(url, topk=3, timeout_s=60.0)
        return Searcher([source], concurrency=CONCURRENT, timeout_s=60.0, retries=3, cache=cache)

    plain, cached = searcher(None), searcher(SearchCache(cache_file, "bench", max_age_s=3600.0))
    ways = {"searcher": by_searcher(plain), "new session": by_new_sessions(url), "cache": by_searcher(cached)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    queries = [f"where does place {number} lie, and since when?" for number in range(SEARCHES)]
    for run in range(RUNS + 1):
        for name, search in ways.items():
            figures = await measure(search, queries)
            if run:
                found[name].append(figures)
    await plain.close()
    await cached.close()
    return found


def main() -> int:
    """Prints the table; returns 1 if the bound is missed."""
    args = parser(__doc__).parse_args()
    with apart(serve) as pipe, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(compare(f"http://127.0.0.1:{pipe.recv()}", str(Path(folder) / "cache.db")))
    medians = {
        name: [statistics.median(column) for column in zip(*figures, strict=True)] for name, figures in found.items()
    }
    usual_cpu = medians["new session"][0]
    print(f"Microseconds of one search, {SEARCHES} searches, {CONCURRENT} at once; median of {RUNS} runs of each\n")
    rows = [[name, f"{cpu:.0f}", f"{clock:.0f}", f"{usual_cpu / cpu:.2f}"] for name, (cpu, clock) in medians.items()]
    print_table(["way", "CPU of the client", "clock", "new session / this, CPU"], rows)
    ratio = usual_cpu / medians["searcher"][0]
    figures = {name: {"cpu_us": cpu, "clock_us": clock} for name, (cpu, clock) in medians.items()}
    text = f"a new session costs {ratio:.2f} times the searcher (at least {LEAST_RATIO})"
    return finish(args, {"ways": figures, "ratio": ratio}, [(text, ratio >= LEAST_RATIO)])


if __name__ == "__main__":
    sys.exit(main())
