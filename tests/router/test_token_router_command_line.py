"""`python -m token_router`: what a user sees when something is wrong, and one whole run from start to SIGTERM."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from router_fakes import TOKENIZER, hermes_tokenizer

from token_router.__main__ import StartError, choose_tool_format, main, parse_args

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence on stderr of a router that does not start."""
    assert main([*arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no folder {tmp_path / 'x'}" in error_of(capsys, "--port", "0", "--tokenizer", str(tmp_path / "x"))


@pytest.mark.parametrize("broken", ["", "{"])
def test_a_folder_without_a_tokenizer_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    if broken:
        (tmp_path / "tokenizer.json").write_text(broken)
        (tmp_path / "tokenizer_config.json").write_text(broken)
    assert f"no tokenizer can be loaded from {tmp_path}" in error_of(
        capsys, "--port", "0", "--tokenizer", str(tmp_path)
    )


def test_a_port_in_use_is_reported(tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = error_of(capsys, "--port", port, "--tokenizer", str(tokenizer_folder))
    assert f"cannot use port {port} of 127.0.0.1" in error and "another --port" in error


def test_no_other_process_can_take_the_port_while_the_tokenizer_is_loaded(
    tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))

        def load(_: Path) -> object:
            with pytest.raises(OSError, match="in use"):
                other.listen()
            raise StartError("the tokenizer was to be loaded")

        monkeypatch.setattr("token_router.__main__.load_tokenizer", load)
        port = str(other.getsockname()[1])
        assert "to be loaded" in error_of(capsys, "--port", port, "--tokenizer", str(tokenizer_folder))


def test_a_host_that_is_not_of_this_machine_is_reported(
    tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--port", "0", "--tokenizer", str(tokenizer_folder), "--host", "192.0.2.1")
    assert "192.0.2.1" in error_of(capsys, *arguments)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--upstream", "localhost:30000"], "'localhost:30000' is not the URL of a worker"),
        (["--upstream", "http://a", "ftp://b"], "'ftp://b' is not the URL"),
        (["--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
        (["--port", "x"], "'x' is not a whole number"),
        (["--max-tokens", "0"], "'0' is not a whole number from 1"),
        (["--max-body-mb", "-1"], "whole number from 1"),
        (["--tool-call-format", "morse"], "invalid choice: 'morse'"),
    ],
)
def test_a_wrong_argument_ends_with_two(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--port", "0", "--tokenizer", "x", *wrong])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_help_says_what_it_is_for_and_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "python -m token_router --port" in text
    for option in ("port", "tokenizer", "upstream", "host", "tool-call-format", "max-tokens", "max-body-mb", "debug"):
        assert f"--{option}" in text


def test_upstreams_add_up() -> None:
    args = parse_args(
        ["--port", "1", "--tokenizer", "x", "--upstream", "http://a", "http://b/", "--upstream", "http://c"]
    )
    assert args.upstream == ["http://a", "http://b", "http://c"]


def test_the_tool_format_is_the_one_named_or_the_one_the_template_shows() -> None:
    assert choose_tool_format(TOKENIZER, "auto") is None
    assert choose_tool_format(hermes_tokenizer(), "auto").name == "hermes"
    assert choose_tool_format(TOKENIZER, "llama3").name == "llama3"


def health(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/health") as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_even_with_half_sent_requests(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("token_router.__main__.load_tokenizer", lambda _: TOKENIZER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers, connections, signalled = [], [], []
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"

    def wait_and_stop() -> None:
        while not answers:
            with contextlib.suppress(OSError):
                answers.append(health(f"http://127.0.0.1:{port}"))
            time.sleep(0.02)
        for half in (b"", head[:20], head):
            connections.append(socket.create_connection(("127.0.0.1", port)))
            connections[-1].sendall(half)
        time.sleep(0.2)
        signalled.append(time.monotonic())
        os.kill(os.getpid(), number)

    stopper = threading.Thread(target=wait_and_stop, daemon=True)
    stopper.start()
    assert main(["--port", str(port), "--tokenizer", str(tmp_path), "--upstream", "http://127.0.0.1:1"]) == 0
    stopper.join()
    assert time.monotonic() - signalled[0] < 5
    for connection in connections:
        connection.close()
    assert answers[0]["workers"] == 1
    assert capfd.readouterr() == (f"token router: http://127.0.0.1:{port}, 1 workers\n", "stopped\n")


@pytest.mark.slow
def test_the_command_runs_from_any_folder_with_a_real_tokenizer(tokenizer_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "token_router", "--port", "0", "--tokenizer", ".", "--upstream", "http://127.0.0.1:1"],
        cwd=tokenizer_folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert health(line.split()[2].rstrip(","))["workers"] == 1
        process.terminate()
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (0, "", "stopped\n")
