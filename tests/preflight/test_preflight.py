"""Preflight: it passes where everything is right, and looks at retriever servers closely."""

from pathlib import Path

import pytest
from preflight_helpers import Machine, marked, retriever_server

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
