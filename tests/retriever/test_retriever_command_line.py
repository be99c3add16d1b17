"""The server's command line: what a user sees when something is wrong, and one whole run with a real encoder."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from retriever_fakes import ColourEncoder, minilm_folder, write_corpus, write_flat_index

from local_dense_retriever import build_index, check_installation, encoder_choice, retrieval_server

REPOSITORY = Path(__file__).parents[2]
TOY_CORPUS = REPOSITORY / "local_dense_retriever" / "toy_corpus.jsonl"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index and a corpus of two passages, and an encoder, that belong together."""
    monkeypatch.setattr(encoder_choice, "load_encoder", lambda name, model: ColourEncoder())
    write_corpus(tmp_path / "c.jsonl", ["red", "green"])
    write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(["red", "green"]))
    return tmp_path


def error_of(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one sentence on stderr of a server that does not start."""
    paths = ["--index_path", str(folder / "flat.index"), "--corpus_path", str(folder / "c.jsonl")]
    assert retrieval_server.main([*paths, "--port", "0", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_an_index_and_a_corpus_of_different_sizes_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(folder / "c.jsonl", ["red", "green", "blue"])
    error = error_of(folder, capsys)
    assert f"{folder / 'flat.index'} has 2 rows but the corpus {folder / 'c.jsonl'} has 3 passages: build" in error


def test_an_index_made_by_an_encoder_of_another_size_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_flat_index(folder / "flat.index", np.eye(2, dtype=np.float32))
    error = error_of(folder, capsys)
    assert "has vectors of dimension 2, but the encoder makes 3: give the --retriever_name" in error


@pytest.mark.parametrize("name", ["flat.index", "c.jsonl"])
def test_a_missing_file_is_reported(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / name).unlink()
    assert f"there is no file {folder / name}" in error_of(folder, capsys)


def test_a_file_that_is_not_an_index_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "flat.index").write_text("<html>404 Not Found</html>")
    assert f"{folder / 'flat.index'} is cut short or is not a FAISS index" in error_of(folder, capsys)


def test_a_broken_corpus_is_reported_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.jsonl").write_text("red\n")
    assert f"{folder / 'c.jsonl'}:1: this line is not JSON" in error_of(folder, capsys)


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("topk", "0", "1 and 100"),
        ("topk", "101", "1 and 100"),
        ("max_batch", "0", "1 and 4096"),
        ("max_queue", "511", "512 and 1000000"),
        ("batch_window_ms", "-1.0", "0 and 1000"),
        ("cache_size", "-1", "0 and 100000000"),
        ("port", "70000", "0 and 65535"),
    ],
)
def test_a_number_out_of_range_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, allowed: str
) -> None:
    assert f"--{flag} is {value}; it must be between {allowed}" in error_of(folder, capsys, f"--{flag}", value)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--host", "256.1.1.1"], "cannot use --host 256.1.1.1"),
        (["--host", "192.0.2.1"], "of 192.0.2.1"),  # a documentation address, of no machine
    ],
)
def test_an_address_that_cannot_be_served_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    assert complaint in error_of(folder, capsys, *flags)


def test_a_port_in_use_is_noticed_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "flat.index").unlink()  # would be the complaint if loading came first
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"cannot use port {port} of 127.0.0.1" in error_of(folder, capsys, "--port", port)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
@pytest.mark.parametrize("key", [None, "", "secret"])
def test_an_address_open_to_others_without_a_key_is_warned_of(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    warned: bool,
    key: str | None,
) -> None:
    monkeypatch.delenv("RETRIEVAL_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("RETRIEVAL_API_KEY", key)
    (folder / "flat.index").unlink()  # it ends at once
    retrieval_server.main(
        [
            "--index_path",
            str(folder / "flat.index"),
            "--corpus_path",
            str(folder / "c.jsonl"),
            "--port",
            "0",
            "--host",
            host,
        ]
    )
    errors = capsys.readouterr().err
    assert ("set RETRIEVAL_API_KEY" in errors) == (warned and not key)
    assert "secret" not in errors


@pytest.mark.parametrize(("key", "read"), [("secret\n", "secret"), ("secret\r\n", "secret"), ("  ", None)])
def test_space_around_a_key_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch, key: str, read: str | None) -> None:
    monkeypatch.setenv("RETRIEVAL_API_KEY", key)
    assert retrieval_server.read_api_key() == read


def test_a_key_that_no_client_can_send_is_refused_and_not_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRIEVAL_API_KEY", "sec\nret")
    error = error_of(folder, capsys)
    assert "RETRIEVAL_API_KEY holds a control character" in error and "ret:" not in error and "sec" not in error


@pytest.mark.parametrize("how", [["-m", "local_dense_retriever.{}"], ["local_dense_retriever/{}.py"]])
@pytest.mark.parametrize("tool", ["retrieval_server", "build_index"])
def test_both_tools_run_by_path_and_as_modules(how: list[str], tool: str) -> None:
    command = [sys.executable, *(part.format(tool) for part in how), "--help"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--retriever_model" in run.stdout


def test_importing_the_tools_imports_neither_torch_nor_faiss() -> None:
    code = "import sys, local_dense_retriever.retrieval_server, local_dense_retriever.build_index as b; "
    code += "print([name for name in ('torch', 'transformers', 'faiss') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


NOT_IN_THE_SPECIFICATIONS_LIST = ("httpx", "prometheus_client", "httptools", "bm25s", "requests", "huggingface_hub")


def test_the_packages_of_the_specification_are_enough_to_download_and_to_serve() -> None:
    """`torch faiss-cpu uvicorn fastapi huggingface_hub datasets transformers`; huggingface_hub 2 brings no httpx."""
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_IN_THE_SPECIFICATIONS_LIST!r})); "
    code += """
from local_dense_retriever import app, download, retrieval_server, service, batcher
assert retrieval_server.http_protocol() == "h11"
made = service.Service(batcher.Limits())
made.metrics.describe_index({"rows": 4})
made.metrics.queries.labels("cached").inc(2)
made.metrics.queue.set_function(len)
made.metrics.batch_seconds.observe(1.0)
assert made.metrics.text() is None
app.create_app(made)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Nothing but these packages can be imported, which may still be changed."""
    found = list(names)
    monkeypatch.setattr(check_installation, "find_spec", lambda name: name in found or None)
    return found


def test_packages_that_nothing_needs_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed(monkeypatch, "torch", "transformers", "faiss", "fastapi", "uvicorn", "tqdm")
    assert check_installation.missing_packages() == []
    found.pop()
    assert check_installation.missing_packages() == ["tqdm"]


def test_torch_is_not_missed_where_onnxruntime_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed(monkeypatch, "onnxruntime", "tokenizers", "faiss", "fastapi", "uvicorn", "tqdm")
    assert check_installation.missing_packages() == []
    del found[:2]
    assert check_installation.missing_packages() == ["torch", "transformers"]


def test_what_the_installation_is_checked_for_is_what_the_requirements_name() -> None:
    lines = (REPOSITORY / "local_dense_retriever" / "requirements.txt").read_text().splitlines()
    needed = {re.match(r"[a-z]+", line)[0] for line in lines if "# optional" not in line and line[0] != "#"}
    assert needed == {names[0] for names in check_installation.PACKAGES} | {"numpy"}  # which all others bring


def test_the_launcher_gives_no_index_file_if_the_vectors_are_in_milvus(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    launcher = REPOSITORY / "local_dense_retriever" / "start_server.sh"

    def flags(*given: str) -> str:
        environment = {**os.environ, "PYTHON": str(python)}
        return subprocess.run([launcher, *given], env=environment, capture_output=True, text=True, check=True).stdout

    assert " --index_path " in flags("--topk", "5")
    for given in (["--milvus_uri", "m.db"], ["--milvus_uri=m.db"]):
        assert " --index_path " not in flags(*given) and " --corpus_path " in flags(*given)


@pytest.mark.slow
@pytest.mark.model
def test_a_toy_index_is_built_served_by_the_launcher_searched_and_stopped(tmp_path: Path) -> None:
    index = tmp_path / "toy.index"
    model = ["--retriever_name", "minilm", "--retriever_model", minilm_folder()]
    assert build_index.main(["--corpus_path", str(TOY_CORPUS), "--index_path", str(index), *model]) == 0

    settings = {"INDEX_PATH": str(index), "CORPUS_PATH": str(TOY_CORPUS), "PORT": "0"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the launcher's python3 is this Python
    launcher = REPOSITORY / "local_dense_retriever" / "start_server.sh"
    with subprocess.Popen(
        [launcher, *model],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            ready = next((line for line in server.stdout if line.startswith("ready: ")), "")
            assert "20 passages at http://127.0.0.1:" in ready
            url = ready.split(" at ")[1].split("/retrieve")[0]
            body = {"queries": ["Who invented the printing press?"], "topk": 1}
            with httpx.Client(base_url=url, trust_env=False) as client:
                about = client.get("/ready").json()
                [[document]] = client.post("/retrieve", json=body).json()["result"]
        finally:
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=20)
    assert (about["rows"], about["dimension"]) == (20, 384)
    assert document["contents"].startswith('"Johannes Gutenberg"\n')
    assert (server.returncode, errors) == (0, "stopped\n")
