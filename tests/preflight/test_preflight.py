"""Preflight: it passes where everything is right, and looks at retriever servers closely."""

import asyncio
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from preflight_helpers import TOKENIZER, Machine, marked, retriever_server

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
    assert {"search: known answer", "template: appending", "model: weights", "machine: GPUs"} <= passed.keys()
    assert "4 passages" in passed["search: retriever"] and "3 dimensions, encoder colours" in passed["search: index"]


# --- retrievers ---


def test_a_retriever_that_is_loading_is_named(machine: Machine, tmp_path: Path) -> None:
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


def test_a_missing_key_of_the_retriever_is_named(machine: Machine, tmp_path: Path) -> None:
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
