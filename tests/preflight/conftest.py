"""A machine on which everything is right, with a retriever that serves all tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from preflight_helpers import Machine, retriever_server


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a retriever for the tests of a module."""
    with retriever_server(tmp_path_factory.mktemp("retriever")) as url:
        yield url


@pytest.fixture
def machine(tmp_path: Path, retriever: str) -> Iterator[Machine]:
    """A good machine; what a test leaves open in `machine.open` is closed."""
    made = Machine(tmp_path / "machine", retriever)
    with made.open:
        yield made
