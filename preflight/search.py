"""Checks of searching: the retriever servers or the key of web search, and the file of the cache."""

import asyncio
import importlib.util
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from preflight.checkpoint_files import BadFile, text_config
from preflight.findings import Blocked, Finding, Mistake, doubtful, fine, mistake, pip_install, skipped, wrong
from preflight.probe import call, get_all, unwritable
from preflight.setup import ROOT, Setup
from search_rollout.config import SearchConfig
from search_rollout.http_client import RequestFailed
from search_rollout.search.cache import CacheError, SearchCache, calls_made
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.passage import Passage

QUERY = "Who wrote Hamlet?"
TIMEOUT_S = 10.0  # per search
START = f"start it:\n    {shlex.quote(str(ROOT / 'local_dense_retriever/start_server.sh'))}"
VERIFY = "run local_dense_retriever/verify.py"
CORRECT_URL = f"correct RETRIEVAL_SERVER_URL, or {START}"


class Server(NamedTuple):
    """A ready retriever server and its description, which is empty for other servers than ours."""

    url: str
    about: dict[str, Any]


def find_servers(setup: Setup) -> list[Server]:
    """The servers of RETRIEVAL_SERVER_URL. Raises Mistake if one is not ready, Blocked if none is used."""
    config = setup.config
    if config.search_backend != "local":
        raise Blocked("SEARCH_BACKEND is google")
    if config.caching == "replay":
        raise Blocked("SEARCH_CACHE_MODE=replay: nothing is searched")
    bases = [url.rstrip("/").removesuffix("/retrieve") for url in config.retrieval_urls]
    servers = []
    for url, answer in zip(bases, get_all(bases, "/ready", CORRECT_URL), strict=True):
        body = answer.body if isinstance(answer.body, dict) else {}
        if answer.status == 503 and "loading" in body:
            raise Mistake(f"{url} is still loading {body['loading']}", "wait for it, or read its log")
        if answer.status not in (200, 404, 405) or (answer.status == 200 and body.get("status") != "ready"):
            raise Mistake(f"{url}/ready answers {answer.status}: this is not a retriever", CORRECT_URL)
        servers.append(Server(url, body if answer.status == 200 else {}))
    return servers


def retriever(setup: Setup) -> Finding:
    servers = setup.once(find_servers)
    if quiet := ", ".join(server.url for server in servers if not server.about):
        found = f"{quiet} answers, but has no /ready: it is not a local_dense_retriever, and may not be loaded yet"
        return doubtful(found, "make sure that it is; the next rows show whether it finds anything")
    counts = [about.get("rows") for _, about in servers]
    sizes = [f"{rows:,} passages" if isinstance(rows, int) else "ready" for rows in counts]
    return fine("; ".join(f"{server.url}: {size}" for server, size in zip(servers, sizes, strict=True)))


def index(setup: Setup) -> Finding:
    # BM25 has no vectors, and reports 0 dimensions.
    known = [server for server in setup.need(find_servers) if server.about.get("dimension")]
    if not known:
        return skipped("no server reports vectors")
    name, dimension = setup.environment.get("RETRIEVER_NAME"), _encoder_dimension(setup)
    for url, about in known:
        if name and about.get("encoder", name) != name:
            problem = f"{url} searches with the encoder {about['encoder']}, but RETRIEVER_NAME={name}"
            return wrong(problem, f"correct RETRIEVER_NAME, or stop that server and {START}")
        if dimension and about["dimension"] != dimension:
            return wrong(
                f"the index of {url} has {about['dimension']} dimensions, but RETRIEVER_MODEL makes {dimension}",
                "set RETRIEVER_MODEL to the model that the index was built with, or build the index again",
            )
    if len({(about["dimension"], about.get("encoder")) for _, about in known}) > 1:
        said = "; ".join(f"{url} {about['dimension']} {about.get('encoder', '')}".strip() for url, about in known)
        return doubtful(f"the servers have different indexes: {said}", "serve the same index from all of them")
    about = known[0].about
    encoder = f", encoder {about['encoder']}" if "encoder" in about else ""
    return fine(f"{about['dimension']} dimensions{encoder}, {about.get('backend', 'unknown backend')}")


def _encoder_dimension(setup: Setup) -> int | None:
    """The dimension of RETRIEVER_MODEL if that is a local folder."""
    try:
        size = text_config(Path(setup.environment.get("RETRIEVER_MODEL") or "/none")).get("hidden_size")
    except BadFile:  # usually a name on the hub
        return None
    return size if isinstance(size, int) else None


def corpus(setup: Setup) -> Finding:
    servers = setup.need(find_servers)
    audits = [str(server.about["audit"]).replace("\n", "; ") for server in servers[:1] if "audit" in server.about]
    if len(servers) == 1:
        return fine(audits[0]) if audits else skipped("there is one server")
    counts = {server.url: server.about.get("rows") for server in servers}
    if len(set(counts.values())) > 1:
        problem = f"different corpora: {'; '.join(f'{url} has {rows} passages' for url, rows in counts.items())}"
        return wrong(problem, "serve the same corpus from all of them: rollouts ask any of them")
    return fine("; ".join([f"the same number of passages on {len(servers)} servers", *audits]))


def first_passages(setup: Setup) -> dict[str, list[Passage]]:
    """URL → the passages that the server finds for QUERY. Raises Mistake."""
    servers = setup.need(find_servers)
    found = {server.url: _find(setup.config, server.url, [QUERY])[0] for server in servers}
    for url, passages in found.items():
        if not passages or not all(passage.text.strip() for passage in passages):
            problem = f"{url} answers {QUERY!r} with {'an empty passage' if passages else 'nothing'}"
            remedy = "look at its corpus: each line needs `contents`, which is a title and, on the next line, the text"
            raise Mistake(problem, remedy)
    return found


def first_search(setup: Setup) -> Finding:
    if setup.config.search_backend == "google" and setup.config.caching != "replay":
        return _search_web(setup)
    counts = [f"{len(passages)} passages" for passages in setup.once(first_passages).values()]
    return fine(f"{QUERY!r}: {', '.join(counts)}")


def _search_web(setup: Setup) -> Finding:
    if setup.lacks_google_key:
        remedy = "set GOOGLE_API_KEY to a key from serper.dev, or SEARCH_BACKEND=local for your own retriever"
        return wrong("SEARCH_BACKEND=google, but GOOGLE_API_KEY is not set", remedy)
    from google_search_server import GoogleSearch

    config = setup.config
    source = GoogleSearch(config)
    with mistake("correct GOOGLE_API_KEY, or SEARCH_R1_GOOGLE_ENDPOINT", RequestFailed):
        passages = call(source, lambda: source.find(QUERY))
    if not passages:
        return wrong(f"{QUERY!r} finds nothing", "check SEARCH_R1_GOOGLE_ENDPOINT: is it the results API?")
    return fine(f"{QUERY!r}: {len(passages)} passages, by one call (about ${config.google_usd_per_1000 / 1000:.4f})")


def known_answer(setup: Setup) -> Finding:
    """Searches for passages by their own text; this fails if index and corpus do not belong together."""
    notes = []
    for url, about in setup.need(find_servers):
        if not about:
            return skipped(f"{url} may be a server of web search, where each query costs money")
        passages = setup.need(first_passages)[url]
        found = _find(setup.config, url, [f"{passage.title}\n{passage.text}" for passage in passages])
        pairs = list(zip(passages, found, strict=True))
        first = sum(passage in hits[:1] for passage, hits in pairs)
        said = f"{url}: searched by their own text, {first} of {len(passages)} passages come first"
        if not any(passage in hits for passage, hits in pairs):
            remedy = f"index and corpus, or index and encoder, do not belong together: {VERIFY}"
            return wrong(f"{said}, and none is found at all", remedy)
        if first < len(passages):
            return doubtful(said, f"the index is approximate, or the corpus has duplicates: {VERIFY}")
        notes.append(said)
    return fine("; ".join(notes))


def web_pages(setup: Setup) -> Finding:
    if setup.config.search_backend != "google" or not setup.config.google_full_pages:
        return skipped("pages are not read")
    if importlib.util.find_spec("trafilatura") is None:
        return wrong("google_full_pages is on, but Python has no package trafilatura", pip_install("trafilatura"))
    return fine("trafilatura is installed")


def cache(setup: Setup) -> Finding:
    config = setup.config
    if config.caching == "off":
        return skipped("SEARCH_CACHE is not set" if not config.search_cache else "SEARCH_CACHE_MODE=off")
    path = Path(config.search_cache)
    if not path.is_absolute():
        found = f"SEARCH_CACHE={path} is a relative path, but Ray's workers run in another folder"
        return doubtful(found, f"set SEARCH_CACHE={path.absolute()}")
    if not path.exists() and config.caching != "replay":
        if problem := unwritable(path.parent):
            return wrong(f"SEARCH_CACHE={path}: {problem}", "set SEARCH_CACHE to a file that you may write")
        return fine(f"{path} will be created")
    with mistake("set SEARCH_CACHE to a file that this plugin made, or to a new one without replay", CacheError):
        asyncio.run(SearchCache(str(path), "", max_age_s=1.0, read_only=True).close())
    return fine(f"{path}, {config.caching}")


def budget(setup: Setup) -> Finding:
    config = setup.config
    if not config.search_budget:
        return skipped("SEARCH_BUDGET is not set")
    made = calls_made(config.search_cache) if config.caching != "off" else 0
    used = f"{made:,} of SEARCH_BUDGET={config.search_budget:,} calls are used"
    if made >= config.search_budget:
        return wrong(f"{used}: every search would fail", "raise SEARCH_BUDGET, or set it to 0 for unlimited")
    if made >= 0.8 * config.search_budget:
        return doubtful(used, "raise SEARCH_BUDGET if that is not enough")
    return fine(used)


def _find(config: SearchConfig, url: str, queries: list[str]) -> list[list[Passage]]:
    """The passages for each query, found by the rollouts' own client. Raises Mistake."""
    client = LocalRetriever(url, topk=config.topk, timeout_s=TIMEOUT_S, api_key=config.retrieval_api_key)

    async def find() -> list[list[Passage]]:
        return await asyncio.gather(*map(client.find, queries))

    with mistake("read that server's log; a key belongs in RETRIEVAL_API_KEY", RequestFailed):
        return call(client, find)


CHECKS = (retriever, index, corpus, first_search, known_answer, web_pages, cache, budget)
