"""What a user of `python -m demo.serve` sees when the folder is not what it should be."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import serve


@pytest.fixture(autouse=True)
def main_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("kept", [[], ["summary.json"], ["after"]])
def test_a_folder_without_a_finished_run_or_without_its_model_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: list[str]
) -> None:
    for name in kept:
        (tmp_path / name).touch()
    assert serve.main([str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {tmp_path} is not a finished run with a model in after/")
    assert len(shown.splitlines()) == 1
