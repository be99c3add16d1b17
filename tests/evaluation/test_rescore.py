"""`search-r1 rescore`: recorded trajectories under another reward."""

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_helpers import ANSWER, SEARCH, fresh_state  # noqa: F401
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from many_trajectories import write_many
from rollout_helpers import make_sample, plugin, roll_out

from evaluation import rescore
from evaluation.records import record_of
from search_rollout.config import REWARD_PRESETS

pytestmark = pytest.mark.model

TOKENIZER = tiny_tokenizer()
FAILURE = [Turn(status=400, body={"error": "no"})]
SCRIPTS = {  # the reward by default, and under `paper`
    "right": ([SEARCH.format(country="Kenya"), ANSWER.format(answer="Nairobi")], 1.0, 1.0),
    "wrong": ([SEARCH.format(country="Kenya"), ANSWER.format(answer="Mombasa")], 0.2, 0.0),
    "right, without a thought": (["<answer>Nairobi</answer>"], 0.8, 1.0),
    "no answer": (["no<|im_end|>"] * 4, 0.0, 0.0),
}


def rolled(monkeypatch: pytest.MonkeyPatch, *names: str, **settings: Any) -> list[dict[str, Any]]:
    """Real rollouts of these kinds as one group, as an evaluation records them."""

    async def one(number: int, turns: list[Turn]) -> dict[str, Any]:
        engine = FakeEngine(TOKENIZER, turns)
        async with plugin(monkeypatch, TOKENIZER, engine, FakeRetriever(), **settings) as (args, _):
            return record_of(await roll_out(args, make_sample(index=number, group_index=0)))

    scripts = [FAILURE if name == "discarded" else [Turn(text) for text in SCRIPTS[name][0]] for name in names]
    return [asyncio.run(one(number, turns)) for number, turns in enumerate(scripts)]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def rescored(path: Path, tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of --output."""
    output = tmp_path / "out" / "rescored.jsonl"
    assert rescore.main([str(path), *options, "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def failed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a wrong command line prints."""
    assert rescore.main([str(word) for word in words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("preset", REWARD_PRESETS)
def test_rescoring_a_run_under_its_own_preset_changes_nothing(monkeypatch, tmp_path, capsys, preset):
    lines = rolled(monkeypatch, *SCRIPTS, reward_preset=preset)
    rows = rescored(write(tmp_path / "run.jsonl", lines), tmp_path, "--preset", preset)
    assert [row["new_reward"] for row in rows] == [line["reward"] for line in lines]
    assert [row["new_advantage"] for row in rows] == [row["advantage"] for row in rows]
    assert "4 samples, 0 with another reward (0.0%)" in capsys.readouterr().out


def test_another_preset_gives_the_rewards_that_training_would_have_given(monkeypatch, tmp_path, capsys):
    lines = rolled(monkeypatch, *SCRIPTS)
    rows = rescored(write(tmp_path / "run.jsonl", lines), tmp_path, "--preset", "paper")
    assert [(row["reward"], row["new_reward"]) for row in rows] == [tuple(script[1:]) for script in SCRIPTS.values()]
    # recorded: mean 0.5, deviation sqrt((.25 + .09 + .09 + .25) / 3); paper: mean 0.5, deviation sqrt(1 / 3)
    assert [row["advantage"] for row in rows] == pytest.approx(np.array([0.5, -0.3, 0.3, -0.5]) / 0.476096, rel=1e-4)
    assert [row["new_advantage"] for row in rows] == pytest.approx(np.array([0.5, -0.5, 0.5, -0.5]) * 3**0.5, rel=1e-4)
    out = capsys.readouterr().out
    assert "mean reward                0.5000  0.5000  +0.0000" in out and "2 with another reward (50.0%)" in out


def test_signs_and_groups_without_variance_are_counted(monkeypatch, tmp_path, capsys):
    lines = rolled(monkeypatch, "wrong", "no answer", "no answer")
    assert rescore.main([str(write(tmp_path / "run.jsonl", lines)), "--preset", "paper"]) == 0
    out = capsys.readouterr().out
    assert "groups without variance    0.0000  1.0000  +1.0000" in out
    assert "groups compared: 1; advantages that change sign: 3 of 3 (+ to 0 1, - to 0 2)" in out


def test_one_score_is_changed_by_set(monkeypatch, tmp_path):
    lines = rolled(monkeypatch, *SCRIPTS)
    path = write(tmp_path / "run.jsonl", lines)
    rows = rescored(path, tmp_path, "--set", "format_score=0.1", "--set", "retrieval_score=0.3")
    assert [row["new_reward"] for row in rows] == [1.0, 0.4, 0.9, 0.0]  # the passage holds the answer
    rows = rescored(path, tmp_path, "--preset", "paper", "--set", "format_score=0.5")
    assert [row["new_reward"] for row in rows] == [1.0, 0.5, 0.5, 0.0]


def test_settings_of_the_environment_do_not_count(monkeypatch, tmp_path):
    lines = rolled(monkeypatch, "wrong")
    monkeypatch.setenv("REWARD_PRESET", "paper")
    monkeypatch.setenv("SEARCH_R1_FORMAT_SCORE", "0.7")
    assert rescored(write(tmp_path / "run.jsonl", lines), tmp_path)[0]["new_reward"] == 0.2


def test_a_discarded_sample_keeps_its_reward_and_counts_in_no_group(monkeypatch, tmp_path, capsys):
    lines = rolled(monkeypatch, "right", "wrong", "discarded")
    rows = rescored(write(tmp_path / "run.jsonl", lines), tmp_path)
    assert rows[2]["new_reward"] == 0.0 and rows[2]["new_advantage"] is None
    assert rows[0]["advantage"] == pytest.approx(0.5**0.5, rel=1e-4)  # of two samples: (1 - 0.6) / 0.5657
    assert "1 discarded samples keep theirs" in capsys.readouterr().out


def test_a_dump_is_read_like_jsonl(monkeypatch, tmp_path):
    lines = rolled(monkeypatch, *SCRIPTS)
    torch.save({"rollout_id": 3, "samples": lines}, tmp_path / "rollout_3.pt")
    dumped = rescored(tmp_path / "rollout_3.pt", tmp_path, "--preset", "f1")
    written = rescored(write(tmp_path / "run.jsonl", lines), tmp_path, "--preset", "f1")
    assert [row | {"where": ""} for row in dumped] == [row | {"where": ""} for row in written]


REWARDS = """
import asyncio
def plain(args, sample, **kwargs):
    return 0.25 * len(sample.response) / len(sample.response)
async def slow(args, sample, **kwargs):
    await asyncio.sleep(0)
    return {"score": 0.75, "other": 1}
async def ranks(args, samples, **kwargs):
    return [number / 10 for number, _ in enumerate(samples)]
def broken(args, sample, **kwargs):
    raise KeyError("nobody")
def words(args, sample, **kwargs):
    return "good"
def total(args, samples, **kwargs):
    return 1.0
nothing = 3
"""


@pytest.fixture
def my_rewards(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)


@pytest.mark.parametrize(
    ("options", "rewards"),
    [
        (["plain"], [0.25] * 4),
        (["slow", "--reward-key", "score"], [0.75] * 4),
        (["ranks", "--group-rm"], [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_a_function_of_the_users_scores_as_slime_would_call_it(monkeypatch, tmp_path, my_rewards, options, rewards):
    path = write(tmp_path / "run.jsonl", rolled(monkeypatch, *SCRIPTS))
    rows = rescored(path, tmp_path, "--reward", f"my_rewards.{options[0]}", *options[1:])
    assert [row["new_reward"] for row in rows] == rewards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "my_rewards.broken"], r"my_rewards.broken failed on .*run.jsonl, line 1: KeyError\('nobody'\)."),
        (["--reward", "my_rewards.words"], "run.jsonl, line 1: the reward 'good' is not a number."),
        (["--reward", "my_rewards.slow"], "line 1: the reward is a dict; give --reward-key, one of: score, other."),
        (["--reward", "my_rewards.total", "--group-rm"], "must return 4 rewards for .*line 1"),
        (["--reward", "my_rewards.none"], "--reward my_rewards.none cannot be imported: .*; give MODULE.FUNCTION."),
        (["--reward", "nowhere.at_all"], "cannot be imported: No module named 'nowhere'"),
        (["--reward", "alone"], "cannot be imported"),
        (["--reward", "my_rewards.nothing"], "is not a function"),
        (["--set", "max_turns=3"], "--set is 'max_turns=3'; it must be KEY=VALUE with a KEY of answer_metric, "),
        (["--set", "format_score"], "it must be KEY=VALUE"),
        (["--set", "format_score=2"], "has value 2.0; it must be a number from 0 to 1"),
        (["--set", "answer_metric=bleu"], "it must be one of em, f1, sub_em"),
    ],
)
def test_a_wrong_option_gets_one_sentence(monkeypatch, tmp_path, my_rewards, capsys, options, message):
    path = write(tmp_path / "run.jsonl", rolled(monkeypatch, *SCRIPTS))
    assert re.search(message, failed(capsys, path, *options))


def test_samples_of_other_plugins_are_scored_by_their_text(tmp_path):
    told = "<think>I look.</think><search>Kenya</search><information>Nairobi</information>"
    xml = {"response": f"{told}<think>So.</think><answer>Nairobi</answer>", "prompt": "?", "label": "Nairobi"}
    chat = xml | {"response": "<think>So.</think>\n<answer>Nairobi</answer><|im_end|>", "metadata": None}
    lines = [line | {"reward": 0.0, "status": "completed"} for line in (xml, chat)]
    rows = rescored(write(tmp_path / "run.jsonl", lines), tmp_path, "--set", "llm_api_mode=chat")
    assert rows[1]["new_reward"] == 1.0
    assert rescored(write(tmp_path / "run.jsonl", lines), tmp_path)[0]["new_reward"] == 1.0


def test_samples_that_cannot_be_scored_are_counted_by_reason(monkeypatch, tmp_path, capsys):
    (line,) = rolled(monkeypatch, "right")
    lines = [line, line | {"label": None}, line | {"reward": None}, {"label": "x", "reward": 1.0}]
    assert len(rescored(write(tmp_path / "run.jsonl", lines), tmp_path)) == 1
    out = capsys.readouterr().out
    for reason in ("a gold answer in `label`", "a recorded reward (aborted)"):
        assert f"left out: 1 without {reason}" in out
    assert "left out: 1 with neither a record nor a `response`" in out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "There is nothing to score again: the files are empty."),
        ([{"reward": 1.0, "response": "x"}], "nothing to score again: 1 without a gold answer in `label`."),
        ([{"reward": "high", "response": "x", "label": "y"}], "line 1: the reward 'high' is not a number."),
        ([{"reward": {"em": 1}, "response": "x", "label": "y"}], "give --reward-key, one of: em."),
        (
            [{"reward": 1, "response": "x", "label": "y", "status": "odd"}],
            "line 1: 'odd' is not one of slime's statuses.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_sentence(tmp_path, capsys, lines, message):
    assert message in failed(capsys, write(tmp_path / "run.jsonl", lines))


def test_a_missing_file_is_reported(tmp_path, capsys):
    assert failed(capsys, tmp_path / "none.jsonl") == f"error: There is no file {tmp_path / 'none.jsonl'}."


@pytest.mark.slow
def test_ten_thousand_trajectories_are_scored_again_in_seconds(tmp_path, capsys):
    write_many(tmp_path / "many.jsonl")
    began = time.monotonic()
    assert rescore.main([str(tmp_path / "many.jsonl"), "--preset", "paper"]) == 0
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n10,000 trajectories scored again in {seconds:.1f} s")
    assert "10,000 samples" in capsys.readouterr().out
    assert seconds < 60  # beside other tests; docs/REWARDS.md has the figure of a run by itself
