"""How many prompt tokens an engine finds in its prefix cache, by how the router chooses the engine of a call.

    pip install sglang-router
    python -m benchmarks.bench_prefix_routing [--json FILE]

One training step: 32 prompts x 8 samples, all at once, each a trajectory of 1 to 4 engine calls. A call sends all ids
so far: a prompt of 200 that the 8 samples share, then 80 of the model and 500 of documents for each turn before it.
The router is the real one, and the plugin's own client sends the ids. The four engines are fakes with a prefix cache
each, which forgets the ids used longest ago; a call takes longer the more ids are not in it.

    round_robin          the next engine
    cache_aware          sglang-router's default: the engine that has seen the most similar prompt, unless it is busy
    consistent_hashing   by the header X-SMG-Routing-Key: one engine for all turns of a sample
    manual               the same, but a new key goes to the least busy engine
    by group             consistent_hashing with one key for the samples of a prompt, which slime does not send

Printed for each: the share of prompt ids that were cached, and how many more ids than the average the busiest engine
had to compute.
"""

import asyncio
import importlib.util
import itertools
import logging
import random
import statistics
import subprocess
import sys
import uuid
from asyncio.subprocess import Process
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from benchmarks.reporting import Report, parser, run
from benchmarks.servers import engine_reply
from search_rollout.engine.client import EngineClient
from search_rollout.http_client import never

ENGINES, CACHE_TOKENS, STEPS = 4, 60_000, 3
PROMPTS, SAMPLES, MOST_CALLS = 32, 8, 4
PROMPT, TURN, DOCUMENTS = 200, 80, 500  # tokens
PAGE = 20  # tokens that a cache keeps or loses together; divides each of the three
SECONDS_A_TOKEN = 20e-6  # of a prompt, where it is not cached
SECONDS_A_CALL = 0.1  # to sample TURN tokens
POLICIES = ("round_robin", "cache_aware", "consistent_hashing", "manual", "by group")

ROUTER = """
import sys
from sglang_router.launch_router import RouterArgs, launch_router
policy, port, *workers = sys.argv[1:]
router = RouterArgs(worker_urls=workers, host="127.0.0.1", port=int(port), policy=policy, log_level="error")
router.assignment_mode = "min_load"
router.balance_abs_threshold, router.balance_rel_threshold = 10, 1.2  # as slime sets them
router.disable_circuit_breaker = router.disable_health_check = True
launch_router(router)
"""


class FakeEngine:
    """SGLang's /generate, as far as its prefix cache goes, and what a router asks an engine for."""

    def __init__(self) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()  # hash of everything up to the page's end
        self._sampled = itertools.count(10**6)
        self.read = self.cached = 0  # ids

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", self._generate)
        for path in ("/health", "/server_info", "/model_info", "/get_server_info", "/get_model_info"):
            app.router.add_get(path, self._about)
        return app

    async def _about(self, _: web.Request) -> web.Response:
        return web.json_response({"is_generation": True, "tp_size": 1, "dp_size": 1})

    async def _generate(self, request: web.Request) -> web.Response:
        ids = (await request.json())["input_ids"]
        hit = self._remember(ids)
        self.read += len(ids)
        self.cached += hit
        await asyncio.sleep(SECONDS_A_CALL * random.uniform(0.5, 1.5) + SECONDS_A_TOKEN * (len(ids) - hit))
        new = list(itertools.islice(self._sampled, TURN))
        self._remember([*ids, *new])
        return engine_reply("", new, len(ids))

    def _remember(self, ids: Sequence[int]) -> int:
        """How many of the ids were known; afterwards all are, and those used longest ago are forgotten."""
        known, hit, prefix = True, 0, 0
        for start in range(0, len(ids) - PAGE + 1, PAGE):
            prefix = hash((prefix, *ids[start : start + PAGE]))
            known = known and prefix in self._pages
            hit += PAGE * known
            self._pages[prefix] = None
            self._pages.move_to_end(prefix)
        while len(self._pages) > CACHE_TOKENS // PAGE:
            self._pages.popitem(last=False)
        return hit


@asynccontextmanager
async def real_router(policy: str, urls: Sequence[str]) -> AsyncIterator[str]:
    """sglang-router in front of the engines, as slime starts it."""
    port = unused_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ROUTER, policy, str(port), *urls), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await asyncio.wait_for(_until_it_routes(f"http://127.0.0.1:{port}", process), 300)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_it_routes(url: str, process: Process) -> None:
    async with aiohttp.ClientSession() as session:
        while process.returncode is None:
            try:
                async with session.get(f"{url}/workers") as answer:
                    if len((await answer.json(content_type=None))["workers"]) == ENGINES:
                        return
            except (aiohttp.ClientError, ValueError, KeyError):
                pass
            await asyncio.sleep(0.2)
    raise RuntimeError(f"sglang-router ended with status {process.returncode} before it served.")


def samples(seed: int) -> list[tuple[int, list[int], int]]:
    """(group, prompt ids, engine calls) of each sample of a step."""
    choose = random.Random(seed)
    prompts = [[choose.randrange(10**5) for _ in range(PROMPT)] for _ in range(PROMPTS)]
    return [(group, ids, choose.randint(1, MOST_CALLS)) for group, ids in enumerate(prompts) for _ in range(SAMPLES)]


async def roll_out(client: EngineClient, key: str, prompt: list[int], calls: int) -> None:
    """One trajectory: all ids go to the engine, its ids and the documents' are appended."""
    choose, ids = random.Random(key), list(prompt)
    headers = {"X-SMG-Routing-Key": str(uuid.UUID(int=choose.getrandbits(128)))}  # as slime makes them
    for _ in range(calls):
        body = {"sampling_params": {"max_new_tokens": TURN}, "return_logprob": True, "input_ids": ids}
        reply = await client.generate(body, headers, never)
        ids = [*ids, *reply.ids, *(random.randrange(10**5) for _ in range(DOCUMENTS))]
        await asyncio.sleep(random.uniform(0.0, 0.1))  # a search


async def step(policy: str, seed: int) -> tuple[float, float, int]:
    """(share of prompt ids cached, busiest engine / average, ids computed) of one step by one policy."""
    by_group = policy == "by group"
    engines = [FakeEngine() for _ in range(ENGINES)]
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(TestServer(engine.app())) for engine in engines]
        urls = [f"http://127.0.0.1:{server.port}" for server in servers]
        url = await stack.enter_async_context(real_router("consistent_hashing" if by_group else policy, urls))
        client = EngineClient(url, timeout_s=60.0, retries=0)
        stack.push_async_callback(client.close)
        await asyncio.gather(
            *(
                roll_out(client, f"{seed} {group if by_group else number}", prompt, calls)
                for number, (group, prompt, calls) in enumerate(samples(seed))
            )
        )
    computed = [engine.read - engine.cached for engine in engines]
    share = 1 - sum(computed) / sum(engine.read for engine in engines)
    return share, max(computed) * ENGINES / sum(computed), sum(computed)


def possible(seed: int) -> float:
    """The share of prompt ids that one engine with an endless cache would know."""
    read, new = 0, PROMPTS * PROMPT
    for _, _, calls in samples(seed):
        read += sum(PROMPT + call * (TURN + DOCUMENTS) for call in range(calls))
        new += (calls - 1) * DOCUMENTS
    return 1 - new / read


def measure(report: Report) -> None:
    """A row for each policy, the mean of STEPS steps."""
    if importlib.util.find_spec("sglang_router") is None:
        raise RuntimeError("sglang-router is not installed: pip install sglang-router.")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the router first tries whether they speak gRPC
    rows: list[dict[str, Any]] = []
    for policy in POLICIES:
        runs = [asyncio.run(step(policy, seed)) for seed in range(STEPS)]
        hit, busiest, computed = map(statistics.fmean, zip(*runs, strict=True))
        row = {"policy": policy, "prompt ids cached": hit, "busiest engine / average": busiest}
        rows.append({**row, "ids computed": round(computed)})
        print(f"{policy}: {hit:.3f}", file=sys.stderr)
    most = statistics.fmean(map(possible, range(STEPS)))
    report.table(f"One engine with an endless cache would know {most:.3f} of the ids.", rows)
    robin, hashing = (row["ids computed"] for row in rows if row["policy"] in ("round_robin", "consistent_hashing"))
    report.bound("round_robin computes {} times the prompt ids of consistent_hashing", robin / hashing, least=1.2)


if __name__ == "__main__":
    run(measure, parser(__doc__))
