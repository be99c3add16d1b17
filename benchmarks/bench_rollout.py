"""CPU that one trajectory costs outside the GPU: the plugin, and the tokenising that it makes the engine do.

    python -m benchmarks.bench_rollout [--json FILE]

Two ways to roll out are measured in turns, at 256 concurrent trajectories, against an engine that answers at once:

    ids    generate_with_search.generate: ids in, ids out
    text   the usual loop: the whole text is sent each turn, the engine tokenises it, the client tokenises the reply

Engine and retriever are a process of their own. The client's CPU is that of this process; the engine's is the time it
spends in its tokenizer, counted apart.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
from aiohttp import web
from transformers import AutoTokenizer

from benchmarks.reporting import CACHE, Report, parser, run
from benchmarks.servers import apart, engine_reply, serve
from demo.models import policy_folder
from evaluation.plugin import find_slime, plugin_args

CONCURRENT, GROUP = 256, 8  # 32 prompts, 8 samples of each
TURNS = (1, 2, 4, 8, 16)
THOUGHT = "<think>" + "The question asks for a place, so its name has to be found in the documents first. " * 4
SEARCH = THOUGHT + "</think>\n<search>where the place in question lies</search>"
ANSWER = THOUGHT + "</think>\n<answer>Nairobi</answer>"
PASSAGE = '"A place"\n' + "The place lies in the highlands in the south of the country and was founded in 1899. " * 6
PROMPTS = [
    "Answer the question by searching. " * 20 + f"In which country does place {number} lie?\n"
    for number in range(CONCURRENT // GROUP)
]


def engine_and_retriever(model: str, pipe: Connection) -> None:
    """Sends the port, then, whenever asked, the seconds spent in the tokenizer since the last time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    replies = {text: tokenizer.encode(text, add_special_tokens=False) for text in (SEARCH, ANSWER)}
    calls: Counter[str] = Counter()
    records = itertools.count()
    spent = 0.0

    async def generate(request: web.Request) -> web.Response:
        nonlocal spent
        body = await request.json()
        ids = body.get("input_ids")
        if ids is None:
            began = time.thread_time()
            ids = tokenizer.encode(body["text"], add_special_tokens=False)
            spent += time.thread_time() - began
        name, turns = request.headers["X-Search-R1-Trajectory"], body["sampling_params"]["custom_params"]["turns"]
        calls[name] += 1
        text = ANSWER if calls[name] == turns else SEARCH
        return engine_reply(text, replies[text], len(ids))

    async def retrieve(request: web.Request) -> web.Response:
        queries = (await request.json())["queries"]
        found = {"document": {"contents": f"{PASSAGE}Record {next(records)}."}, "score": 1.0}  # different every time
        return web.json_response({"result": [[found] * 3 for _ in queries]})

    def tokenising() -> float:
        nonlocal spent
        since, spent = spent, 0.0
        return since

    serve({"/generate": generate, "/retrieve": retrieve}, pipe, tokenising)


def slime_args(model: str, port: int, turns: int) -> argparse.Namespace:
    """slime's args for trajectories of `turns` engine calls."""
    url = f"http://127.0.0.1:{port}"
    settings = {"search_backend": "local", "retrieval_server_url": url, "max_context_length": 10**6}
    settings["max_turns"] = max(turns - 1, 1)
    return plugin_args(model=model, engine_url=url, settings=settings, temperature=0.8, max_response_len=512)


async def by_ids(args: argparse.Namespace, turns: int, number: int, session: aiohttp.ClientSession) -> int:
    """One trajectory by the plugin; returns how many tokens it has."""
    from slime.utils.types import Sample

    import generate_with_search

    params = {"max_new_tokens": 512, "temperature": 0.8, "custom_params": {"turns": turns}}
    sample = Sample(index=number, prompt=PROMPTS[number // GROUP], label="Nairobi")
    sample = await generate_with_search.generate(args, sample, params)
    assert sample.metadata["search_r1"]["stop_reason"] == "answered", sample.metadata
    return len(sample.tokens)


async def by_text(args: argparse.Namespace, turns: int, number: int, session: aiohttp.ClientSession) -> int:
    """One trajectory in the usual style: text is the state, and is tokenised wherever ids are needed."""
    from slime.rollout.sglang_rollout import GenerateState

    tokenizer = GenerateState(args).tokenizer
    base = f"http://127.0.0.1:{args.sglang_router_port}"
    headers = {"X-Search-R1-Trajectory": f"{turns}-{number}-{time.monotonic_ns()}"}
    params = {"max_new_tokens": 512, "temperature": 0.8, "custom_params": {"turns": turns}}
    prompt = PROMPTS[number // GROUP]
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    response = ""
    response_ids: list[int] = []
    mask: list[int] = []
    log_probs: list[float] = []
    for _ in range(turns):
        body = {"text": prompt + response, "sampling_params": params, "return_logprob": True}
        async with session.post(f"{base}/generate", json=body, headers=headers) as answer:
            reply = await answer.json()
        ids = tokenizer.encode(reply["text"], add_special_tokens=False)
        response, response_ids, mask = response + reply["text"], response_ids + ids, mask + [1] * len(ids)
        log_probs += [triple[0] for triple in reply["meta_info"]["output_token_logprobs"]]
        if "</answer>" in reply["text"]:
            break
        query = reply["text"].partition("<search>")[2].partition("</search>")[0]
        async with aiohttp.ClientSession() as search:  # a session of its own for each search is part of the style
            async with search.post(f"{base}/retrieve", json={"queries": [query], "topk": 3}) as answer:
                documents = (await answer.json())["result"][0]
        texts = (f"Doc {place}: {found['document']['contents']}" for place, found in enumerate(documents, start=1))
        observation = "\n\n<information>" + "\n".join(texts) + "</information>\n\n"
        ids = tokenizer.encode(observation, add_special_tokens=False)
        response, response_ids, mask = response + observation, response_ids + ids, mask + [0] * len(ids)
        log_probs += [0.0] * len(ids)
    assert len(response_ids) == len(mask) == len(log_probs)
    return len(prompt_ids) + len(response_ids)


async def cost(way: Any, args: argparse.Namespace, turns: int, pipe: Connection) -> tuple[float, float, float]:
    """(client CPU ms, engine's tokenising ms, tokens) of one trajectory."""
    import generate_with_search

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await way(args, turns, 0, session)
        pipe.send(True)
        pipe.recv()
        began = time.process_time()
        lengths = await asyncio.gather(*(way(args, turns, number, session) for number in range(CONCURRENT)))
        client = time.process_time() - began
    await generate_with_search.close()
    pipe.send(True)
    return 1000 * client / CONCURRENT, 1000 * pipe.recv() / CONCURRENT, statistics.mean(lengths)


def measure(report: Report) -> None:
    """A row for each number of turns."""
    find_slime()
    model = str(policy_folder(CACHE))
    rows: dict[int, dict[str, float]] = {}
    with apart(engine_and_retriever, model) as pipe:
        port = pipe.recv()
        for turns in TURNS:
            runs: dict[Any, list[tuple[float, float, float]]] = {by_ids: [], by_text: []}
            for _ in range(5 if turns <= 4 else 2):
                for way, found in runs.items():
                    found.append(asyncio.run(cost(way, slime_args(model, port, turns), turns, pipe)))
            (ids_client, ids_engine, tokens), (text_client, text_engine, _) = (
                map(statistics.mean, zip(*found, strict=True)) for found in runs.values()
            )
            rows[turns] = {
                **{"turns": turns, "tokens": tokens},
                **{"ids: client": ids_client, "ids: engine tokenising": ids_engine},
                **{"text: client": text_client, "text: engine tokenising": text_engine},
                "text / ids": (text_client + text_engine) / (ids_client + ids_engine),
            }
            print(f"{turns} turns measured", file=sys.stderr)
    title = f"CPU milliseconds of one trajectory, {CONCURRENT} at once; mean of 5 runs of each, of 2 from 8 turns on"
    report.table(title, list(rows.values()))
    four, sixteen = (rows[turns]["ids: client"] + rows[turns]["ids: engine tokenising"] for turns in (4, 16))
    report.bound("at 4 turns text costs {} times ids", rows[4]["text / ids"], least=2.0)
    report.bound("16 turns cost {} times 4 turns by ids", sixteen / four, most=6.0)


if __name__ == "__main__":
    run(measure, parser(__doc__))
