"""Preflight: it passes where everything is right, and looks at retriever servers closely."""

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from preflight_helpers import CONFIG, TOKENIZER, Machine, marked, retriever_server
from real_tokenizers import NAMES, real_tokenizer
from retriever_fakes import write_corpus
from web_fakes import KEY, FakeGoogle

from local_dense_retriever import audit
from local_dense_retriever.corpus import Corpus
from preflight import search
from preflight.findings import fine
from preflight.groups import run_groups
from preflight.setup import Setup
from token_router.app import create_app
from token_router.token_trie import TokenTrie
from token_router.workers import Workers

THREE_COLOURS = [f'"T{number}"\n{colour}' for number, colour in enumerate(["red"] * 4 + ["green"] * 4 + ["blue"] * 4)]


@pytest.mark.parametrize("mode", ["generate", "chat"])
def test_a_good_set_up_passes(machine: Machine, mode: str) -> None:
    machine.environment["LLM_API_MODE"] = mode
    machine.write_data("chat" if mode == "chat" else "generate")
    rows = machine.look()
    assert marked(rows, "✗") == {} and marked(rows, "!") == {}
    passed = marked(rows, "✓")
    assert {"search: known answer", "template: appending", "model: weights", "machine: gpus"} <= passed.keys()
    assert "4 passages" in passed["search: retriever"] and "3 dimensions, encoder colours" in passed["search: index"]


# --- retrievers ---


def test_a_retriever_that_is_loading_is_reported(machine: Machine, tmp_path: Path) -> None:
    with retriever_server(tmp_path / "r", loads=False) as url:
        machine.environment["RETRIEVAL_SERVER_URL"] = url
        wrong = marked(machine.look(), "✗")
    assert list(wrong) == ["search: retriever"] and "still loading" in wrong["search: retriever"]


def test_an_index_of_another_corpus_is_found_by_known_answers(machine: Machine, tmp_path: Path) -> None:
    with retriever_server(tmp_path / "r", THREE_COLOURS, indexed=THREE_COLOURS[4:] + THREE_COLOURS[:4]) as url:
        machine.environment["RETRIEVAL_SERVER_URL"] = url
        wrong = marked(machine.look(), "✗")
    assert list(wrong) == ["search: known answer"] and "do not belong together" in wrong["search: known answer"]


def test_servers_of_different_corpora_are_found(machine: Machine, retriever: str, tmp_path: Path) -> None:
    with retriever_server(tmp_path / "r", THREE_COLOURS) as url:
        machine.environment["RETRIEVAL_SERVER_URL"] = f"{retriever}, {url}"
        wrong = marked(machine.look(), "✗")
    assert list(wrong) == ["search: corpus"]
    assert f"{retriever} has 4 passages; {url} has 12 passages" in wrong["search: corpus"]


def test_an_audit_of_the_corpus_is_shown(machine: Machine, tmp_path: Path) -> None:
    (folder := tmp_path / "r").mkdir()
    (folder / "musique.jsonl").write_text('{"golden_answers": ["red"]}\n')
    audit.audit(Corpus(write_corpus(folder / "c.jsonl", THREE_COLOURS)), [folder / "musique.jsonl"])
    with retriever_server(folder, THREE_COLOURS) as url:
        machine.environment["RETRIEVAL_SERVER_URL"] = url
        passed = marked(machine.look(), "✓")
    assert passed["search: corpus"].startswith("musique: 1 questions; some passage has a gold answer for 1.000")


def test_a_missing_key_of_the_retriever_is_reported(machine: Machine, tmp_path: Path) -> None:
    with retriever_server(tmp_path / "r", key="s3cret") as url:
        machine.environment["RETRIEVAL_SERVER_URL"] = url
        wrong = marked(machine.look(), "✗")
        assert list(wrong) == ["search: first search"] and "RETRIEVAL_API_KEY" in wrong["search: first search"]
        machine.environment["RETRIEVAL_API_KEY"] = "s3cret"
        assert marked(machine.look(), "✗") == {}


def test_empty_passages_are_found(machine: Machine, tmp_path: Path) -> None:
    with retriever_server(tmp_path / "r", ["red", "green", "blue"]) as url:
        machine.environment["RETRIEVAL_SERVER_URL"] = url
        wrong = marked(machine.look(), "✗")
    assert list(wrong) == ["search: first search"] and "an empty passage" in wrong["search: first search"]


@pytest.mark.parametrize("mode", ["generate router_radix", "chat router_handler"])
async def test_a_token_router_of_ours_passes(machine: Machine, mode: str) -> None:
    machine.environment["LLM_API_MODE"], machine.environment["TOKEN_TRACKING_MODE"] = mode.split()
    machine.write_data("chat" if mode.startswith("chat") else "generate")
    app = create_app(TOKENIZER, Workers(), TokenTrie(1000), tool_format=None, max_body_bytes=2**20)
    async with TestServer(app) as server:
        machine.environment["TOKEN_ROUTER_URL"] = f"http://127.0.0.1:{server.port}"
        rows = await asyncio.to_thread(machine.look)
    assert marked(rows, "✗") == {} and "router: token router" in marked(rows, "✓")


@pytest.mark.model
@pytest.mark.parametrize("mode", ["generate", "chat"])
@pytest.mark.parametrize("name", NAMES)
def test_the_templates_of_real_models_pass(machine: Machine, name: str, mode: str) -> None:
    for path in machine.model.glob("*token*"):
        path.unlink()
    (machine.model / "chat_template.jinja").unlink()
    tokenizer = real_tokenizer(name)
    tokenizer.save_pretrained(machine.model)
    machine.write_json("config.json", {**CONFIG, "vocab_size": len(tokenizer)})
    machine.environment["LLM_API_MODE"] = mode
    rows = list(run_groups(Setup(machine.environment), ["template"]))
    assert marked(rows, "✗") == {} and len(marked(rows, "✓")) == (5 if mode == "chat" else 4), rows


async def test_one_call_of_web_search_shows_that_the_key_works(machine: Machine) -> None:
    async with FakeGoogle() as google:
        machine.environment |= {"SEARCH_BACKEND": "google", "SEARCH_R1_GOOGLE_ENDPOINT": google.url}
        machine.environment["GOOGLE_API_KEY"] = KEY
        rows = await asyncio.to_thread(machine.look)
        assert marked(rows, "✗") == {} and len(google.requests) == 1
        assert "3 passages, by one call (about $0.0010)" in marked(rows, "✓")["search: first search"]
        machine.environment["GOOGLE_API_KEY"] = "another-key"
        wrong = marked(await asyncio.to_thread(machine.look), "✗")
    assert (
        list(wrong) == ["search: first search"] and "set GOOGLE_API_KEY to a valid one" in wrong["search: first search"]
    )
    assert "another-key" not in str(wrong)


async def test_a_cluster_of_another_version_is_a_warning(machine: Machine) -> None:
    note = machine.packages / "ray-2.49.0.dist-info" / "METADATA"
    note.parent.mkdir()
    note.write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.49.0\n")

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"ray_version": "2.60.0"})

    app = web.Application()
    app.add_routes([web.get("/api/version", version)])
    async with TestServer(app) as server:
        machine.environment["RAY_ADDRESS"] = f"http://127.0.0.1:{server.port}/"
        rows = await asyncio.to_thread(machine.look)
    assert "Ray 2.60.0, but here it is 2.49.0" in marked(rows, "!")["machine: ray cluster"]


class Ready:
    """A Setup in which one server is ready, and says this about itself."""

    environment: ClassVar[dict[str, str]] = {"RETRIEVER_NAME": "e5"}

    def __init__(self, **about: Any) -> None:
        self._servers = [search.Server("http://there", {"status": "ready", **about})]

    def once(self, _: Any) -> list[search.Server]:
        return self._servers

    def need(self, _: Any) -> list[search.Server]:
        return self._servers


def test_a_server_that_says_only_that_it_is_ready_is_taken_at_its_word() -> None:
    assert search.retriever(Ready()) == fine("http://there: ready")
    assert search.index(Ready()).mark == "–"


def test_an_index_of_words_has_no_dimension_to_compare() -> None:
    words = Ready(backend="bm25", rows=1200, dimension=0)
    assert search.retriever(words) == fine("http://there: 1,200 passages")
    assert search.index(words).mark == "–"


def test_all_sets_of_an_evaluation_are_checked(machine: Machine, tmp_path: Path) -> None:
    sets = [{"name": name, "path": str(machine.data)} for name in ("nq", "hotpotqa")]
    (tmp_path / "eval.yaml").write_text(json.dumps({"eval": {"datasets": sets}}))
    machine.environment |= {"EVAL_INTERVAL": "25", "EVAL_CONFIG": str(tmp_path / "eval.yaml")}
    [row] = [row for row in machine.look() if row.name == "evaluation"]
    assert row.finding.found.startswith(f"2 sets of {tmp_path}/eval.yaml: ") and "every 25 steps" in row.finding.found
