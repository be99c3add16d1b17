"""The two engines, each started once, over the same real model: the demo's own and SGLang.

    make test-sglang                                      installs SGLang, then runs this folder
    .venv/bin/python -m pytest tests/engine -k demo       the demo's engine alone

The demo's engine has to pass the same tests as SGLang: that is what makes it a fair stand-in.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_helpers import ROOT, EngineUnderTest, Figures, demo_engine, sglang_engine

FIGURES = Figures()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "engine"):
            item.add_marker(pytest.mark.engine)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES.lines:
        terminalreporter.section("log-probabilities of bfloat16 engines against a float32 forward pass")
        for line in FIGURES.lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def figures() -> Figures:
    return FIGURES


@pytest.fixture(scope="session")
def policy() -> Any:
    """Folder, model in float32 and tokenizer of the policy that both engines serve."""
    from demo.models import load_policy, policy_folder

    folder = policy_folder(ROOT / ".cache")
    return folder, *load_policy(folder)


@pytest.fixture(scope="session")
def model(policy: Any) -> Iterator[Any]:
    """The reference, in float32 and on one thread: it computes while an engine waits, and both share the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield policy[1].eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer(policy: Any) -> Any:
    return policy[2]


@pytest.fixture(scope="session", params=[demo_engine, sglang_engine], ids=["demo", "sglang"])
def engine(
    request: pytest.FixtureRequest, policy: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineUnderTest]:
    with request.param(policy[0], tmp_path_factory.mktemp("engine")) as engine:
        yield engine
