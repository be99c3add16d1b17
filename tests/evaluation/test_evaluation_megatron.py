"""torch_dist checkpoints, converted by a stand-in for slime's tool that knows its flags and leaves what it leaves."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from demo_helpers import save_model
from evaluation_helpers import records_of, write_data
from fakes import tiny_tokenizer

from evaluation import megatron, run
from evaluation.megatron import convert

ROOT = Path(__file__).resolve().parents[2]
TOOL = """
import argparse, json, os, sys
parser = argparse.ArgumentParser()
for flag in ("--model-name", "--input-dir", "--output-dir", "--origin-hf-dir", "--vocab-size"):
    parser.add_argument(flag)
parser.add_argument("-f", "--force", action="store_true")
args = parser.parse_args()
if os.path.exists(args.output_dir) and not args.force:
    raise ValueError("exists already")
if "broken" in args.input_dir:
    sys.exit("No module named 'megatron'")
os.makedirs(args.output_dir)
told = vars(args) | {"path": os.environ["PYTHONPATH"]}
with open(os.path.join(args.output_dir, "config.json"), "w") as config:
    json.dump(told, config)
print("model loaded in 1 sec.")
"""


@pytest.fixture
def slime(tmp_path: Path) -> Path:
    """slime's repository, as far as conversion needs it."""
    (tmp_path / "slime" / "tools").mkdir(parents=True)
    (tmp_path / "slime" / megatron.TOOL).write_text(TOOL)
    return tmp_path / "slime"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"vocab_size": 151936}')
    return tmp_path / "hf"


def iteration(folder: Path, number: int) -> Path:
    path = folder / f"iter_{number:07d}"
    path.mkdir(parents=True)
    (path / "common.pt").touch()
    (folder / "latest_checkpointed_iteration.txt").write_text(str(number))
    return path


def test_the_latest_iteration_is_converted_once(
    slime: Path, origin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/root/Megatron-LM")
    iteration(tmp_path / "ckpt", 20)
    latest = iteration(tmp_path / "ckpt", 120)
    folder = convert(tmp_path / "ckpt", slime, origin, tmp_path / "cache")
    told = json.loads((folder / "config.json").read_text())
    assert (told["input_dir"], told["origin_hf_dir"], told["vocab_size"]) == (str(latest), str(origin), "151936")
    assert told["path"] == f"{slime}:/root/Megatron-LM"
    assert "model loaded" in capfd.readouterr().err  # the tool's progress is shown, and stdout left alone
    assert convert(tmp_path / "ckpt", slime, origin, tmp_path / "cache") == folder
    assert "model loaded" not in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_another_iteration_is_another_model(slime: Path, origin: Path, tmp_path: Path) -> None:
    paths = [iteration(tmp_path / "ckpt", number) for number in (20, 120)]
    folders = {convert(path, slime, origin, tmp_path / "cache") for path in paths}
    assert len(folders) == 2


def test_a_tool_that_fails_leaves_its_words_and_no_model(
    slime: Path, origin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    iteration(tmp_path / "broken", 1)
    with pytest.raises(RuntimeError, match=r"convert_torch_dist_to_hf.py failed; .* Megatron-LM in PYTHONPATH"):
        convert(tmp_path / "broken", slime, origin, tmp_path / "cache")
    assert "No module named 'megatron'" in capfd.readouterr().err
    assert list((tmp_path / "cache").iterdir()) == []


def test_folders_that_are_not_what_they_should_be_are_reported(slime: Path, origin: Path, tmp_path: Path) -> None:
    path = iteration(tmp_path / "ckpt", 1)
    with pytest.raises(ValueError, match="is not slime's repository"):
        convert(path, tmp_path, origin, tmp_path / "cache")
    with pytest.raises(ValueError, match="--model must be the Hugging Face folder that training started from"):
        convert(path, slime, tmp_path, tmp_path / "cache")
    with pytest.raises(ValueError, match="is not a torch_dist checkpoint"):
        convert(origin, slime, origin, tmp_path / "cache")


COPYING_TOOL = """
import shutil, sys
values = dict(zip(sys.argv[1::2], sys.argv[2::2]))
shutil.copytree(values["--origin-hf-dir"], values["--output-dir"])
"""


@pytest.mark.slow
@pytest.mark.model
def test_a_checkpoint_is_converted_served_and_evaluated_by_one_command(slime: Path, tmp_path: Path) -> None:
    (slime / megatron.TOOL).write_text(COPYING_TOOL)
    model = save_model(tmp_path / "origin", tiny_tokenizer())
    iteration(tmp_path / "ckpt", 3)
    options = {
        "--model": model,
        "--megatron_checkpoint": tmp_path / "ckpt",
        "--slime_dir": slime,
        "--cache": tmp_path / "cache",
        "--engine": "demo",
        "--engine_args": "--dtype float32 --slots 4",
        "--search": "none",
        "--data": write_data(tmp_path / "test.jsonl"),
        "--output": tmp_path / "out",
        "--max_response_len": 8,
    }
    flags = [str(part) for pair in options.items() for part in pair]
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.run", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(records_of(tmp_path / "out")) == 4
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["model"].startswith(str(tmp_path / "cache" / "converted" / "ckpt-iter_0000003-"))
    port = re.search(r"http://127.0.0.1:(\d+)", (tmp_path / "out" / "engine.log").read_text())
    assert port is not None
    with pytest.raises(ConnectionRefusedError):  # the engine is gone
        socket.create_connection(("127.0.0.1", int(port[1])), timeout=5)


def test_a_checkpoint_needs_slime_and_an_engine_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", "m", "--search", "none", "--data", "d.jsonl", "--output", "o", "--megatron_checkpoint", "c"]
    for more in (["--engine", "sglang"], ["--engine", "http://127.0.0.1:1", "--slime_dir", "s"]):
        with pytest.raises(SystemExit):
            run.main([*given, *more])
        assert "--megatron_checkpoint needs --slime_dir and --engine sglang" in capsys.readouterr().err
