"""What a user of the demo sees when something is wrong, and that none of its processes is left behind."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_helpers import assert_ended, save_model, write_world
from fakes import tiny_tokenizer

from demo import retriever_process, train
from demo.retriever_process import RetrieverProcess, build_index, index_path
from evaluation.server_process import free_port

STUB_RETRIEVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1  # it is not ready at first
        self.send_response(503 if Handler.asked < 3 else 200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen]]:
    """All processes that a test starts; none may be left at its end."""
    processes: list[subprocess.Popen] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield processes
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.kill()
        process.wait()
    assert left == []


# --- python -m demo.train -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), tiny_tokenizer())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place with a world, a cache and an index that needs no building; main()'s marks on the process are undone."""
    write_world(tmp_path / "world")
    (tmp_path / "cache").mkdir()
    index_path(tmp_path / "cache", tmp_path / "world" / "corpus.jsonl").touch()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def error_of(folder: Path, model: Path, capfd: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one sentence on stderr of a demo that does not start; later flags override earlier ones."""
    places = ["--model", model, "--world", folder / "world", "--cache", folder / "cache", "--runs", folder / "runs"]
    threads = set(threading.enumerate())
    assert train.main([str(argument) for argument in (*places, *flags)]) == 1
    assert_ended(set(threading.enumerate()) - threads)
    shown = capfd.readouterr().err
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]  # not transformers' progress bars
    assert len(errors) == 1 and "Traceback" not in shown
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--samples", "1"], "--samples must be 2 or more"),
        (["--minutes", "0"], "argument --minutes: 0 is not a number above 0"),
        (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
        (["--steps", "-3"], "argument --steps: -3 is not a number above 0"),
        (["--warm-start-steps", "1.5"], "argument --warm-start-steps: invalid int value: '1.5'"),
        (["--held-out", "0"], "argument --held-out: 0 is not a number above 0"),
        (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
    ],
)
def test_a_value_out_of_range_is_reported(capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as exit:
        train.parse_args(flags)
    assert exit.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_model_folder_without_a_model_is_reported(
    folder: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for wrong in (folder / "none", folder / "world"):
        assert f"{wrong} is not a Hugging Face model folder" in error_of(folder, model, capfd, "--model", wrong)


def test_a_missing_world_is_reported(folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = error_of(folder, model, capfd, "--world", folder / "none")
    assert f"Cannot read the questions in {folder / 'none' / 'train.jsonl'}" in error


def test_an_empty_file_of_questions_is_reported(folder: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "world" / "held_out.jsonl"
    path.write_text("")
    assert f"{path} holds no questions" in error_of(folder, model, capfd)


def test_a_missing_corpus_is_reported(
    folder: Path, model: Path, capfd: pytest.CaptureFixture[str], started: list[subprocess.Popen]
) -> None:
    (folder / "world" / "corpus.jsonl").unlink()
    assert str(folder / "world" / "corpus.jsonl") in error_of(folder, model, capfd)
    assert started == []


def test_a_runs_folder_that_cannot_be_made_is_reported(
    folder: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    assert str(folder / "file") in error_of(folder, model, capfd, "--runs", folder / "file")


@pytest.mark.slow
def test_a_retriever_that_does_not_start_ends_the_demo_with_its_last_words(
    folder: Path, model: Path, capfd: pytest.CaptureFixture[str], started: list[subprocess.Popen]
) -> None:
    arguments = ["--model", model, "--world", folder / "world", "--cache", folder / "cache", "--runs", folder / "runs"]
    assert train.main([str(argument) for argument in arguments]) == 1
    shown = capfd.readouterr().err
    assert "error: The retriever did not start; its log " in shown and "Traceback" not in shown
    assert str(index_path(folder / "cache", folder / "world" / "corpus.jsonl")) in shown  # an empty file is no index
    assert [process.poll() for process in started] == [1]  # an index is there: only the server was started


# --- the retriever's process --------------------------------------------------------------------------------------


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A retriever that only says whether it is ready stands in for the real one, which takes seconds to load."""
    (tmp_path / "retrieval_server.py").write_text(STUB_RETRIEVER)
    monkeypatch.setattr(retriever_process, "SCRIPTS", tmp_path)
    monkeypatch.setattr(retriever_process, "START_TIMEOUT_S", 15.0)
    return tmp_path


def retriever(folder: Path) -> RetrieverProcess:
    return RetrieverProcess(folder / "corpus.jsonl", folder / "flat.index", folder / "encoder", folder / "log")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_retriever_is_ready_inside_the_block_and_gone_after_it(stub: Path, started: list[subprocess.Popen]) -> None:
    with retriever(stub) as running:
        assert httpx.get(f"http://127.0.0.1:{running.port}/ready", trust_env=False).status_code == 200
        (process,) = started
        assert process.poll() is None
    assert process.poll() == -signal.SIGTERM
    assert not is_open(running.port)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_retriever_is_gone_after_a_block_that_raised(
    stub: Path, started: list[subprocess.Popen], error: type[BaseException]
) -> None:
    with pytest.raises(error), retriever(stub) as running:
        raise error
    assert started[0].poll() == -signal.SIGTERM
    assert not is_open(running.port)


def test_a_proxy_of_the_environment_is_not_asked_for_the_retriever(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(retriever_process, "START_TIMEOUT_S", 3.0)
    with retriever(stub) as running:
        assert is_open(running.port)


def test_a_retriever_that_never_answers_is_stopped_after_the_timeout(
    stub: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen]
) -> None:
    (stub / "retrieval_server.py").write_text("print('still loading', flush=True)\nimport time\ntime.sleep(60)")
    monkeypatch.setattr(retriever_process, "START_TIMEOUT_S", 0.5)
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*still loading"):
        retriever(stub).__enter__()
    assert started[0].poll() == -signal.SIGTERM


def test_a_retriever_that_dies_is_reported_with_the_end_of_its_log(
    tmp_path: Path, started: list[subprocess.Popen]
) -> None:
    with pytest.raises(RuntimeError, match="did not start") as error:
        retriever(tmp_path).__enter__()  # the real one
    assert f"error: there is no file {tmp_path / 'corpus.jsonl'}" in str(error.value)
    assert started[0].poll() == 1


def test_the_index_tools_progress_is_shown_and_its_error_becomes_the_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import sys\nsys.stderr.write('\\r 50%\\r100%\\nerror: the disk is full\\n')\nsys.exit(1)"
    (tmp_path / "build_index.py").write_text(script)
    monkeypatch.setattr(retriever_process, "SCRIPTS", tmp_path)
    with pytest.raises(RuntimeError, match=r"^the disk is full$"):
        build_index(tmp_path, tmp_path, tmp_path)
    assert capsys.readouterr().err == "\r 50%\r100%\n"


def test_an_interrupt_while_the_index_is_built_stops_its_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen]
) -> None:
    (tmp_path / "build_index.py").write_text(
        "import sys, time\nprint('x', file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    monkeypatch.setattr(retriever_process, "SCRIPTS", tmp_path)

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stderr.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path, tmp_path, tmp_path)
    assert started[0].wait(10) == -signal.SIGKILL


def test_a_free_port_is_free() -> None:
    assert not is_open(free_port())
