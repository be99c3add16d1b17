"""docs/WALKTHROUGH.md: commands that a newcomer can type, and the script that runs them."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import search_r1_cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/regenerate_walkthrough.py, for a page in a folder of its own."""
    spec = importlib.util.spec_from_file_location("regenerate_walkthrough", ROOT / "docs" / "regenerate_walkthrough.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["regenerate_walkthrough.py"])
    return module


def test_each_command_of_the_page_is_short_and_known() -> None:
    page = (ROOT / "docs" / "WALKTHROUGH.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (.+)$", page, re.MULTILINE)
    assert len(commands) >= 9 and max(map(len, commands)) <= 100
    ours = [command.split()[1] for command in commands if command.startswith(".venv/bin/search-r1 ")]
    assert {"view", "compare", "chat", "evaluate", "preflight"} <= set(ours) <= set(search_r1_cli.COMMANDS)


def test_every_command_is_run_and_its_output_written_below_it(tmp_path: Path, script: ModuleType) -> None:
    script.PAGE.write_text(
        "# Page\n\n```console\n$ echo one\nold output\n```\n\n_Took 9:99; old._\n\nText.\n\n"
        "```console\n$ sed 's/^/question: /'\nquestion: Who?\n```\n"
    )
    assert script.main() == 0
    assert script.PAGE.read_text() == (
        "# Page\n\n```console\n$ echo one\none\n```\n\n"
        "_Took 0:00; the longest time without a line was 0 s._\n\nText.\n\n"
        "```console\n$ sed 's/^/question: /'\nquestion: Who?\n```\n\n"
        "_Took 0:00; the longest time without a line was 0 s._\n"
    )


def test_a_long_output_is_cut_and_a_long_or_silent_command_is_reported(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MAX_SILENCE_S", 0.2)
    script.PAGE.write_text(f"```console\n$ seq 1000; sleep 0.4 # {'x' * 100}\n```\n")
    assert script.main() == 1
    lines = script.PAGE.read_text().splitlines()
    assert lines[61:64] == ["60", "…", "961"] and len(lines) == 2 + 60 + 1 + 40 + 3
    errors = capsys.readouterr().err
    assert "characters: seq 1000" in errors and "silent for 0 s: seq 1000" in errors


def test_the_newest_run_takes_the_name_of_the_old_one(tmp_path: Path, script: ModuleType) -> None:
    (tmp_path / "runs" / "demo-20300101-000000-seed0").mkdir(parents=True)
    (tmp_path / "Makefile").write_text("demo:\n\t@echo trained\n")
    script.PAGE.write_text("```console\n$ make demo\n```\n\n```console\n$ echo runs/demo-20200101-000000-seed0\n```\n")
    assert script.main() == 0
    assert "\nruns/demo-20300101-000000-seed0\n" in script.PAGE.read_text()
