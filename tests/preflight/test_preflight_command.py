"""`python -m preflight` as a command: its table, its exit status, its time, and one real rollout."""

import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preflight_helpers import CONFIG, Machine, marked, silent_server
from real_tokenizers import real_tokenizer
from retriever_fakes import minilm_folder

from local_dense_retriever import build_index
from preflight import groups, probe, router
from preflight.__main__ import main
from preflight.findings import Finding, doubtful, fine
from preflight.groups import Check, Row, run_groups
from preflight.setup import Setup

ROOT = Path(__file__).resolve().parent.parent.parent


def run(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user at this machine calls it."""
    return subprocess.run(
        [sys.executable, "-m", "preflight", *arguments],
        env={**machine.environment, "PYTHONPATH": f"{ROOT}:{machine.packages}"},
        cwd=machine.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- the command ---


@pytest.mark.slow
@pytest.mark.model
def test_a_qwen_set_up_passes_with_a_row_a_check_and_a_count(machine: Machine) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        (machine.model / name).unlink(missing_ok=True)
    real_tokenizer("qwen2.5").save_pretrained(machine.model)
    machine.write_json("config.json", {**CONFIG, "vocab_size": 151936})
    machine.model_args.write_text("MODEL_ARGS=(--num-layers 36 --vocab-size 151936)\n")
    machine.write_data("chat")
    machine.environment["LLM_API_MODE"] = "chat"
    done = run(machine, "--strict")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    *rows, last = done.stdout.splitlines()
    assert {line[0] for line in rows if line[0] != " "} == {"✓", "–"}
    assert re.fullmatch(r"\d+ passed, \d+ skipped \(\d+\.\d s\)", last)
    assert "calls are read as hermes" in done.stdout and "'<|im_end|>' (151645) ends a turn" in done.stdout
    assert "\033" not in done.stdout


def test_a_mistake_makes_the_exit_status_1_and_strict_counts_warnings(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**machine.environment, "SAVE_DIR": ""}.items():
        monkeypatch.setenv(name, value)
    assert (main([]), main(["--strict"])) == (0, 1)
    assert "1 warnings" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setenv("PROMPT_DATA", "/no/such.parquet")
    assert main(["--skip", "machine", "packages", "--skip", "search"]) == 1
    shown = capsys.readouterr().out
    assert "1 failed, 1 warnings" in shown.splitlines()[-1]
    assert "→ correct PROMPT_DATA" in shown[shown.index("✗ data     file") :].split("–")[0]
    assert not re.search(r"^. (machine|packages|search) ", shown, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--skip", "nothing"], ["--engine", "localhost:30000"], ["--fast"]])
def test_a_wrong_command_line_is_2(machine: Machine, arguments: list[str]) -> None:
    done = run(machine, *arguments)
    assert done.returncode == 2 and "error: " in done.stderr.splitlines()[-1]


def test_help_lists_every_group(machine: Machine) -> None:
    shown = run(machine, "--help").stdout
    groups = re.findall(r"^  (\w+) +\w", shown[shown.index("groups of checks:") :], re.MULTILINE)
    package = ROOT / "preflight"
    assert set(groups) == {path.stem for path in package.glob("*.py") if "\nCHECKS = (" in path.read_text()}


def test_a_terminal_gets_colour_and_lines_that_fit(machine: Machine) -> None:
    machine.environment |= {"LOSS_MASK_MODE": "simple", "COLUMNS": "70", "TERM": "xterm"}
    reading, writing = pty.openpty()
    skipped = ["machine", "model", "template", "data", "search", "router"]
    command = [sys.executable, "-m", "preflight", "--skip", *skipped]
    with subprocess.Popen(command, env=machine.environment, cwd=ROOT, stdin=writing, stdout=writing) as process:
        os.close(writing)
        shown = b""
        while chunk := _read(reading):
            shown += chunk
        assert process.wait(timeout=60) == 0
    os.close(reading)
    assert "\033[32m✓\033[0m".encode() in shown
    lines = re.sub(r"\033\[\d+m", "", shown.decode()).split("\r\n")
    assert max(len(line) for line in lines if "/" not in line) <= 70  # a path is never broken
    assert any(line.startswith("!") for line in lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


# --- checks that go wrong themselves ---


def look_with(monkeypatch: pytest.MonkeyPatch, machine: Machine, *checks: Check) -> list[Row]:
    monkeypatch.setattr(router, "CHECKS", checks)
    return list(run_groups(Setup(machine.environment), ["router"]))


def test_a_check_that_breaks_is_a_row_and_the_others_still_look(
    monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    def broken(setup: Setup) -> Finding:
        raise KeyError("surprise")

    def sound(setup: Setup) -> Finding:
        return fine("looked")

    found = look_with(monkeypatch, machine, broken, sound)
    assert [(row.name, row.finding.mark) for row in found] == [("broken", "✗"), ("sound", "✓")]
    assert "KeyError('surprise')" in found[0].finding.found


def test_a_missing_package_is_a_row_with_its_installation(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    bad = marked(machine.look(), "✗")
    assert list(bad) == ["data: file"] and "-m pip install pyarrow" in bad["data: file"]


def test_a_python_without_aiohttp_gets_one_row_with_the_remedy(machine: Machine) -> None:
    (machine.packages / "aiohttp.py").write_text(  # found slowly, so that several threads import at the same time
        "import time\ntime.sleep(0.3)\nraise ModuleNotFoundError(\"No module named 'aiohttp'\", name='aiohttp')\n"
    )
    done = run(machine, "--skip", "packages", "model", "data", "template")
    rows = [line for line in done.stdout.splitlines() if line.startswith("✗")]
    assert done.returncode == 1 and len(rows) == 1, done.stdout
    assert "Python has no package aiohttp" in rows[0] and "-m pip install aiohttp" in done.stdout
    assert "✓ machine  gpus" in done.stdout  # which need no aiohttp


def test_a_check_that_hangs_is_reported_after_the_time_limit(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(groups, "LIMIT_S", 0.3)

    def quick(setup: Setup) -> Finding:
        return doubtful("", "")

    def hanging(setup: Setup) -> Finding:
        time.sleep(1)
        return fine("")

    found = look_with(monkeypatch, machine, quick, hanging)
    assert [(row.name, row.finding.mark) for row in found] == [("quick", "!"), ("hanging", "✗")]
    assert "no result after" in found[1].finding.found


def test_silent_servers_are_named_within_bounds(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 1.0)  # of 5, which is how long each of the rows takes
    monkeypatch.setattr(router, "TIMEOUT_S", 1.0)
    with silent_server() as url:
        machine.environment |= {
            "RETRIEVAL_SERVER_URL": f"{url},{url.replace('127.0.0.1', 'localhost')}",
            "TOKEN_TRACKING_MODE": "router_radix",
            "TOKEN_ROUTER_URL": url,
            "RAY_ADDRESS": url,
        }
        began = time.monotonic()
        found = machine.look(engine=url)
        assert time.monotonic() - began < 10
    bad = marked(found, "✗")
    assert list(bad) == ["machine: ray cluster", "search: retriever", "router: token router", "engine: address"]
    assert all("within 1 s" in said or "imeout" in said for said in bad.values()), bad


# --- the real retriever ---


@pytest.mark.slow
@pytest.mark.model
def test_the_real_retriever_over_minilm_passes(machine: Machine, tmp_path: Path) -> None:
    corpus, index = tmp_path / "toy.jsonl", tmp_path / "toy.index"
    shutil.copy(ROOT / "local_dense_retriever" / "toy_corpus.jsonl", corpus)
    flags = ["--corpus_path", str(corpus), "--index_path", str(index)]
    flags += ["--retriever_name", "minilm", "--retriever_model", minilm_folder()]
    assert build_index.main(flags) == 0
    command = [sys.executable, "-m", "local_dense_retriever.retrieval_server", *flags, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = iter(server.stdout.readline, "")
            ready = next(line for line in lines if line.startswith("ready: "))
            url = re.search(r"http://\S+?(?=/retrieve)", ready)
            assert url
            machine.environment |= {"RETRIEVAL_SERVER_URL": url[0], "RETRIEVER_NAME": "minilm"}
            machine.environment["RETRIEVER_MODEL"] = minilm_folder()
            found = machine.look()
        finally:
            server.terminate()
    assert marked(found, "✗") == {}
    passed = marked(found, "✓")
    assert "384 dimensions, encoder minilm" in passed["search: index"]
    assert "searched by their own text, 3 of 3 passages come first" in passed["search: known answer"]
    assert marked(found, "!") == {}
