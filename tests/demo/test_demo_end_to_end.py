"""The whole demo with real server processes, on a tiny model and a tiny world; and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from demo_helpers import save_model
from fakes import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CAPITALS = {"Kenya": "Nairobi", "Ghana": "Accra", "Peru": "Lima", "Cuba": "Havana"}
pytestmark = [pytest.mark.slow, pytest.mark.model]


def demo_command(tmp_path: Path) -> list[str]:
    """A demo of two GRPO steps that takes seconds: the warm start lets the tiny model learn the traces by heart."""
    model = save_model(tmp_path / "model", tiny_tokenizer())
    world = tmp_path / "world"
    world.mkdir()
    passages, questions = [], []
    for number, (country, capital) in enumerate(CAPITALS.items()):
        text = f"The capital of {country} is {capital}."
        passages.append({"id": f"p{number}", "contents": f'"{country}"\n{text}'})
        hop = {"query": f"capital of {country}", "passage_id": f"p{number}", "found": capital}
        question = {"id": f"q{number}", "text": f"Capital of {country}?", "answers": [capital], "hops": [hop]}
        questions.append(question)
    for name, rows in {"corpus": passages, "train": questions, "held_out": questions}.items():
        (world / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {
        "--model": model,
        "--world": world,
        "--cache": tmp_path / "cache",
        "--runs": tmp_path / "runs",
        "--dtype": "float32",
        "--warm-start-steps": 60,
        "--warm-learning-rate": 5e-3,
        "--learning-rate": 1e-3,
        "--steps": 2,
    }
    return [sys.executable, "-m", "demo.train", *(str(part) for pair in arguments.items() for part in pair)]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module", params=["generate", "chat"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of a finished run in one of the API modes, and what it printed."""
    place = tmp_path_factory.mktemp("finished")
    command = [*demo_command(place), "--api-mode", request.param]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent == place / "runs"
    return folder, done


def test_two_steps_leave_a_summary_a_report_and_no_process(finished: tuple[Path, Any]) -> None:
    folder, done = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["stopped"] == "steps" and summary["seconds"] > 0
    for phase in ("before", "after"):
        assert set(summary[phase]) >= {"exact_match", "valid_format", "searches_per_question"}
        assert summary[phase]["questions"] == 4
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["unrecorded"] == 0.0 and "zero_variance_groups" in step for step in steps)
    if summary["config"]["api_mode"] == "generate":  # a tool call is longer than a turn of the tiny model may be
        assert any(step["groups_trained"] for step in steps)  # there was something to learn from
        # Both sides are in float32; in later steps some tokens were sampled with the weights before.
        assert steps[0]["abs_delta_logprob"] <= 1e-4
    phases = {json.loads(line)["phase"] for line in (folder / "trajectories.jsonl").read_text().splitlines()}
    assert phases == {"untrained", "before", "step 1", "after"}
    assert "<html" in (folder / "report.html").read_text()
    for phase in range(1, 6):
        assert f"phase {phase} of 5" in done.stdout
    for words in ("step  1  reward", "exact match", "valid format", "searches", "|train-rollout logprob|"):
        assert words in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("phase", ["before", "after"])
def test_an_evaluation_of_a_kept_model_gives_the_figures_of_the_demos_table(
    finished: tuple[Path, Any], phase: str
) -> None:
    folder, _ = finished
    serve = [sys.executable, "-m", "demo.serve", str(folder), "--phase", phase]
    serve += ["--cache", str(folder.parent.parent / "cache")]
    checked, done, asked = (
        subprocess.run([*serve, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
        for command in (["--preflight"], ["--evaluate"], ["--chat", "--ask", "Capital of Peru?"])
    )
    assert checked.returncode == 0 and "one rollout" in checked.stdout, checked.stdout
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / f"evaluation-{phase}" / "results.json").read_text())["results"]["demo"]
    table = json.loads((folder / "summary.json").read_text())[phase]
    names = {"em": "exact_match", "valid_format": "valid_format", "searches": "searches_per_question"}
    names |= {"reward": "reward", "response_tokens": "response_length"}
    assert {name: round(results[key]["mean"], 4) for key, name in names.items()} == {
        name: table[name] for name in names.values()
    }
    outcomes = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    expected = {row["id"]: row["exact_match"] for row in outcomes if row["phase"] == phase}
    trajectories = (folder / f"evaluation-{phase}" / "trajectories.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in trajectories]
    assert {record["metadata"]["question_id"]: record["scores"]["em"] for record in records} == expected
    assert asked.stdout.startswith("question: Capital of Peru?\n") and "answer: " in asked.stdout


def test_a_finished_run_can_be_viewed_and_compared_by_its_folder(finished: tuple[Path, Any]) -> None:
    folder, done = finished
    commands = [line.strip().partition("  #")[0] for line in done.stdout.splitlines() if "search-r1 " in line]
    assert [command.split()[1] for command in commands] == ["view", "compare", "chat", "evaluate", "exam", "preflight"]
    page = (folder / "trajectories.html").read_bytes()
    for command in commands[:2]:  # those that the run itself suggests, as they stand there
        subprocess.run(command, shell=True, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert (folder / "trajectories.html").read_bytes() == page
    assert 'href="trajectories.html"' in (folder / "report.html").read_text()


def test_the_steps_of_a_run_are_repeated_bit_by_bit(tmp_path: Path) -> None:
    command = demo_command(tmp_path)
    command[command.index("--dtype") + 1] = "bfloat16"
    command[command.index("--steps") + 1] = "3"
    done = subprocess.run([*command, "--keep-steps"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    replay = [sys.executable, "-m", "demo.replay", done.stdout.splitlines()[-1]]
    again = subprocess.run(replay, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [line.split(",")[0] for line in again.stdout.splitlines()] == [f"step {step}: equal" for step in (1, 2, 3)]


def test_a_killed_run_goes_on_where_it_was_and_has_each_step_once(tmp_path: Path) -> None:
    command = demo_command(tmp_path)
    command[command.index("--steps") + 1] = "3"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line)
            if line.startswith("step  1"):
                break
        children = children_of(process.pid)
        process.kill()
    for child in children:
        os.kill(child, signal.SIGKILL)
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped"] == "running" and "before" in summary
    assert "This run is not finished" in (folder / "report.html").read_text()
    resume = [sys.executable, "-m", "demo.train", "--resume", str(folder)]
    done = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "phase 4 of 5" in done.stdout and "phase 2 of 5" not in done.stdout
    steps = [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    now = json.loads((folder / "summary.json").read_text())
    assert now["before"] == summary["before"] and now["stopped"] == "steps" and now["seconds"] > summary["seconds"]
    assert not (folder / "resume.pt").exists()
    again = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and again.stderr.endswith(f"error: {folder} is finished; start a new run\n")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_done_and_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    command = demo_command(tmp_path)
    command[command.index("--steps") + 1] = "100000"
    if how == signal.SIGTERM:  # as a script starts what runs in its background: SIGINT is ignored there
        command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step  2"):
            break
    children = children_of(process.pid)
    assert children
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    folder = Path(out.splitlines()[-1])
    assert json.loads((folder / "summary.json").read_text())["stopped"] == "interrupted"
    assert (folder / "report.html").is_file()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
