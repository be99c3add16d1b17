"""How many prompt tokens an engine finds in its prefix cache, by how the router chooses the engine of a call.

    pip install sglang-router
    python -m benchmarks.bench_prefix_routing [--json FILE] [--engines 4] [--cache-tokens 60000]

One training step: 32 prompts x 8 samples, all at once, each a trajectory of 1 to 4 engine calls. A call sends all ids
so far: a prompt of 200 that the 8 samples share, then 80 of the model and 500 of documents for each turn before it.
The router is the real one, and the plugin's own client sends the ids. The engines are fakes with a prefix cache each,
which forgets the ids used longest ago; a call takes longer the more ids are not in it.

    round_robin          the next engine
    cache_aware          sglang-router's default: the engine that has seen the most similar prompt, unless it is busy
    consistent_hashing   by the header X-SMG-Routing-Key: one engine for all turns of a sample
    manual               the same, but a new key goes to the least busy engine
    by group             consistent_hashing with one key for the samples of a prompt, which slime does not send

Printed for each: the share of prompt ids that were cached, and how many more ids than the average the busiest engine
had to compute.
"""

import argparse
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
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from benchmarks.reporting import finish, parser, print_table
from search_rollout.engine.client import EngineClient
from search_rollout.http_client import never

PROMPTS, SAMPLES, MOST_CALLS = 32, 8, 4
PROMPT, TURN, DOCUMENTS = 200, 80, 500  # tokens
PAGE = 20  # tokens that a cache keeps or loses together; divides each of the three
SECONDS_A_TOKEN = 20e-6  # of a prompt, where it is not cached
SECONDS_A_CALL = 0.1  # to sample TURN tokens
LEAST_GAIN = 1.2  # of consistent hashing over round robin

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


class Policy(NamedTuple):
    """How the router chooses, and whose key it is sent."""

    name: str
    policy: str
    key: str = "sample"  # or "group"


POLICIES = (
    Policy("round_robin", "round_robin"),
    Policy("cache_aware", "cache_aware"),
    Policy("consistent_hashing", "consistent_hashing"),
    Policy("manual", "manual"),
    Policy("by group", "consistent_hashing", "group"),
)


# ---- The engines ------------------------------------------------------------------------------------------------


class PrefixCache:
    """Which beginnings of prompts an engine remembers, in pages; the pages used longest ago are forgotten first."""

    def __init__(self, tokens: int) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()  # hash of everything up to the page's end
        self._most = tokens // PAGE

    def read(self, ids: Sequence[int]) -> int:
        """How many of the ids were known; afterwards all are."""
        known, hit, prefix = True, 0, 0
        for start in range(0, len(ids) - PAGE + 1, PAGE):
            prefix = hash((prefix, *ids[start : start + PAGE]))
            known = known and prefix in self._pages
            hit += PAGE * known
            self._pages[prefix] = None
            self._pages.move_to_end(prefix)
        while len(self._pages) > self._most:
            self._pages.popitem(last=False)
        return hit


class FakeEngine:
    """SGLang's /generate, as far as its prefix cache goes, and what a router asks an engine for."""

    def __init__(self, cache_tokens: int) -> None:
        self._cache = PrefixCache(cache_tokens)
        self._sampled = itertools.count(10**6)
        self.read = self.cached = self.running = 0

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
        hit = self._cache.read(ids)
        self.read += len(ids)
        self.cached += hit
        self.running += 1
        await asyncio.sleep(SECONDS_A_CALL * random.uniform(0.5, 1.5) + SECONDS_A_TOKEN * (len(ids) - hit))
        self.running -= 1
        new = [next(self._sampled) for _ in range(TURN)]
        self._cache.read([*ids, *new])
        triples = [[-0.5, token, None] for token in new]
        meta = {"finish_reason": {"type": "stop", "matched": "</search>"}, "output_token_logprobs": triples}
        return web.json_response({"text": "", "output_ids": new, "meta_info": meta | {"prompt_tokens": len(ids)}})


@asynccontextmanager
async def engines_of(args: argparse.Namespace) -> AsyncIterator[tuple[list[FakeEngine], list[str]]]:
    """Fake engines and their URLs."""
    engines = [FakeEngine(args.cache_tokens) for _ in range(args.engines)]
    servers = [TestServer(engine.app()) for engine in engines]
    for server in servers:
        await server.start_server()
    try:
        yield engines, [f"http://127.0.0.1:{server.port}" for server in servers]
    finally:
        for server in servers:
            await server.close()


# ---- The router -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def real_router(policy: str, urls: Sequence[str]) -> AsyncIterator[str]:
    """sglang-router in front of the engines, as slime starts it."""
    port = unused_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ROUTER, policy, str(port), *urls), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await asyncio.wait_for(_until_it_routes(f"http://127.0.0.1:{port}", len(urls), process), 300)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_it_routes(url: str, engines: int, process: Process) -> None:
    async with aiohttp.ClientSession() as session:
        while process.returncode is None:
            try:
                async with session.get(f"{url}/workers") as answer:
                    if len((await answer.json(content_type=None))["workers"]) == engines:
                        return
            except (aiohttp.ClientError, ValueError, KeyError):
                pass
            await asyncio.sleep(0.2)
    raise SystemExit(f"sglang-router ended with status {process.returncode} before it served.")


# ---- The rollouts -----------------------------------------------------------------------------------------------


def step(seed: int) -> list[tuple[int, list[int], int]]:
    """(group, prompt ids, engine calls) of each sample."""
    choose = random.Random(seed)
    prompts = [[choose.randrange(10**5) for _ in range(PROMPT)] for _ in range(PROMPTS)]
    return [(group, ids, choose.randint(1, MOST_CALLS)) for group, ids in enumerate(prompts) for _ in range(SAMPLES)]


def session_id(seed: str) -> str:
    """As slime makes them."""
    return str(uuid.UUID(int=random.Random(seed).getrandbits(128)))


async def roll_out(client: EngineClient, key: str, prompt: list[int], calls: int, choose: random.Random) -> None:
    """One trajectory: all ids go to the engine, its ids and the documents' are appended."""
    ids = list(prompt)
    for _ in range(calls):
        body = {"sampling_params": {"max_new_tokens": TURN}, "return_logprob": True, "input_ids": ids}
        reply = await client.generate(body, {"X-SMG-Routing-Key": key}, never)
        ids = [*ids, *reply.ids, *(choose.randrange(10**5) for _ in range(DOCUMENTS))]
        await asyncio.sleep(choose.uniform(0.0, 0.1))  # a search


async def measure(policy: Policy, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """One step by one policy."""
    choose = random.Random(seed)
    async with engines_of(args) as (engines, urls), real_router(policy.policy, urls) as url:
        client = EngineClient(url, timeout_s=60.0, retries=0)
        await asyncio.gather(
            *(
                roll_out(
                    client, session_id(f"{seed} {group if policy.key == 'group' else number}"), prompt, calls, choose
                )
                for number, (group, prompt, calls) in enumerate(step(seed))
            )
        )
        await client.close()
    computed = [engine.read - engine.cached for engine in engines]
    read = sum(engine.read for engine in engines)
    return {
        "hit": 1 - sum(computed) / read,
        "busiest": max(computed) * len(computed) / sum(computed),
        "computed": sum(computed),
    }


def possible(seed: int) -> float:
    """The share of prompt ids that one engine with an endless cache would know."""
    read, new, prompts = 0, 0, set()
    for group, _, calls in step(seed):
        read += sum(PROMPT + call * (TURN + DOCUMENTS) for call in range(calls))
        new += (calls - 1) * DOCUMENTS + PROMPT * (group not in prompts)
        prompts.add(group)
    return 1 - new / read


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 if consistent hashing gains too little."""
    command = parser(__doc__)
    command.add_argument("--engines", type=int, default=4)
    command.add_argument("--cache-tokens", type=int, default=60_000, help="prompt ids that an engine's cache holds")
    command.add_argument("--runs", type=int, default=3, help="steps by each policy, of other trajectories each time")
    args = command.parse_args(argv)
    if importlib.util.find_spec("sglang_router") is None:
        raise SystemExit("sglang-router is not installed: pip install sglang-router.")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the router first tries whether they speak gRPC
    rows = {}
    for policy in POLICIES:
        runs = [asyncio.run(measure(policy, args, seed)) for seed in range(args.runs)]
        rows[policy.name] = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
        print(f"{policy.name}: {rows[policy.name]['hit']:.3f}", file=sys.stderr)
    most = statistics.fmean(possible(seed) for seed in range(args.runs))
    print_table(
        ["policy", "prompt ids cached", "busiest engine / average", "ids computed"],
        [[name, f"{row['hit']:.3f}", f"{row['busiest']:.2f}", round(row["computed"])] for name, row in rows.items()],
    )
    print(f"\nOne engine with an endless cache would know {most:.3f} of the ids.")
    gain = rows["round_robin"]["computed"] / rows["consistent_hashing"]["computed"]
    text = f"round_robin computes {gain:.2f} times the prompt ids of consistent_hashing (bound: {LEAST_GAIN})"
    return finish(args, {"policies": rows, "possible": most}, [(text, gain >= LEAST_GAIN)])


if __name__ == "__main__":
    sys.exit(main())
