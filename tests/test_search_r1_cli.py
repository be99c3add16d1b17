"""`search-r1`: one name for all commands."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import search_r1_cli
from evaluation.terminal import typed

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "search_r1_cli"]
HEAVY = ("torch", "transformers", "numpy", "aiohttp", "argparse")


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*PROGRAM, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_and_imports_none(tmp_path: Path) -> None:
    code = f"import sys, search_r1_cli; search_r1_cli.main(['--help']); print([n for n in {HEAVY} if n in sys.modules])"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - began < 2  # 0.03 s on an idle machine
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"\n  {name} " in done.stdout for name in search_r1_cli.COMMANDS)


@pytest.mark.parametrize("name", search_r1_cli.COMMANDS)
def test_help_of_a_command_calls_it_by_our_name(name: str, tmp_path: Path) -> None:
    done = run(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: search-r1 {name} ")
    assert not re.search(r"\bpython3?\b", done.stdout)


def test_a_command_gets_its_arguments_and_keeps_its_exit_code(tmp_path: Path) -> None:
    done = run("data", "--input", "none.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: none.jsonl does not exist; give --input a .parquet or .jsonl file, or a folder of them.\n",
    )


def test_an_unknown_command_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert search_r1_cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: 'trian' is not a command; search-r1 --help lists them all\n"


@pytest.mark.parametrize("name", search_r1_cli.ON_A_RUN)
def test_a_folder_that_is_no_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert search_r1_cli.main([name, str(tmp_path)]) == 1
    assert "is not the folder of a demo run" in capsys.readouterr().err


@pytest.mark.parametrize("name", search_r1_cli.ON_A_RUN)
def test_a_run_is_served_for_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "summary.json").write_text("{}")
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("runpy.run_module", lambda module, **_: started.append((module, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", [])
    assert search_r1_cli.main([name, str(tmp_path), "--ask", "Who?"]) == 0
    assert started == [("demo.serve", [str(tmp_path), f"--{name}", "--ask", "Who?"])]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completions"), [(["ch"], ["chat"]), (["e"], ["evaluate", "exam"]), (["compare", "--js"], ["--json"])]
)
def test_bash_completes_commands_and_their_options(tmp_path: Path, words: list[str], completions: list[str]) -> None:
    program = tmp_path / "search-r1"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m search_r1_cli "$@"\n')
    program.chmod(0o755)
    script = (
        f'export PATH="{tmp_path}:$PATH" PYTHONPATH="{ROOT}"; eval "$(search-r1 completion bash)"; '
        f"COMP_WORDS=(search-r1 {' '.join(words)}); COMP_CWORD={len(words)}; _search_r1; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == completions, done.stderr


def test_completion_of_another_shell_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert search_r1_cli.main(["completion", "fish"]) == 2
    assert "completion bash|zsh" in capsys.readouterr().err


def test_a_command_is_printed_ready_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / ".venv" / "bin"
    venv.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(venv / "python"))
    monkeypatch.chdir(tmp_path)
    (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
    run_folder = tmp_path / "runs" / "demo 1"
    assert typed("chat", run_folder) == ".venv/bin/python -m search_r1_cli chat 'runs/demo 1'"
    (venv / "search-r1").write_text("#!/bin/sh\n")
    (venv / "search-r1").chmod(0o755)
    assert typed("chat", run_folder) == ".venv/bin/search-r1 chat 'runs/demo 1'"
    monkeypatch.chdir(tmp_path.parent / "elsewhere")
    assert typed("chat", run_folder) == f"{venv}/search-r1 chat '{run_folder}'"
    monkeypatch.setenv("PATH", str(venv))
    assert re.fullmatch(r"search-r1 chat '.*/runs/demo 1'", typed("chat", run_folder))
