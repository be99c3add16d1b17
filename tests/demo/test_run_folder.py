"""The folder of a run, and the figure that it ends in."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import tiny_tokenizer
from slime.utils.types import Sample

from demo.run_folder import RunFolder, paired_gain
from evaluation.records import read_records
from search_rollout.samples.record import RolloutRecord
from search_rollout.trajectory import StopReason

ONE_MOMENT = "20261122-213000"


def test_a_folder_is_named_after_time_and_seed_and_made_with_its_parents(tmp_path: Path) -> None:
    path = RunFolder.new(tmp_path / "new" / "runs", seed=3).path
    assert path.is_dir() and path.parent == tmp_path / "new" / "runs"
    assert re.fullmatch(r"demo-\d{8}-\d{6}-seed3", path.name)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.run_folder.time", SimpleNamespace(strftime=lambda _: ONE_MOMENT))
    names = [RunFolder.new(tmp_path, seed).path.name for seed in (0, 0, 0, 1)]
    name = f"demo-{ONE_MOMENT}"
    assert names == [f"{name}-seed0", f"{name}-seed0-2", f"{name}-seed0-3", f"{name}-seed1"]


def test_a_path_that_is_not_a_folder_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        RunFolder.new(tmp_path / "file", 0)


def test_records_are_appended_line_by_line(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path, 0)
    records = [{"step": 1, "text": "line\nbreak"}, {"step": 2, "text": "Malé"}]
    for number, record in enumerate(records, start=1):
        folder.append("steps.jsonl", record)
        lines = (folder.path / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == records[:number]


def test_the_summary_is_replaced(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path, 0)
    folder.write_summary({"steps": 10, "stopped": "time"})
    folder.write_summary({"steps": 2})
    assert json.loads((folder.path / "summary.json").read_text()) == {"steps": 2}


def test_a_trajectory_is_recorded_as_evaluations_do_with_the_texts_of_its_tokens(tmp_path: Path) -> None:
    tokenizer: Any = tiny_tokenizer()
    prompt, response = tokenizer.encode("capital?"), tokenizer.encode("<answer>Nairobi")
    sample = Sample(prompt="capital?", label={"ground_truth": {"target": ["Nairobi"]}}, reward=1.0)
    sample.tokens, sample.response_length = prompt + response, len(response)
    sample.loss_mask, sample.rollout_log_probs = [1] * len(response), [-0.5] * len(response)
    sample.status = Sample.Status.COMPLETED
    recorded = RolloutRecord(StopReason.ANSWERED, score={"exact_match": True, "answer": "Nairobi"})
    sample.metadata = {"question": "Which capital?", "question_id": "q0", "search_r1": recorded.as_json()}
    folder = RunFolder.new(tmp_path, 0)
    folder.append_trajectory("before", sample, tokenizer)
    (record,) = read_records(folder.path, "before")
    assert read_records(folder.path, "after") == []
    assert record["tokens"] == sample.tokens and "".join(record["pieces"]) == "<answer>Nairobi"
    assert len(record["pieces"]) == len(record["loss_mask"]) == len(record["rollout_log_probs"]) == len(response)
    assert (record["id"], record["phase"], record["gold"]) == ("q0", "before", ["Nairobi"])
    assert record["prompt_text"] == "capital?" and record["scores"]["em"] == 1.0


def test_log_lines_after_a_checkpoint_are_removed(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path, 0)
    folder.append("steps.jsonl", {"step": 1})
    sizes = folder.log_sizes()
    folder.append("steps.jsonl", {"step": 2})
    folder.append("evaluation.jsonl", {"id": "q0"})
    RunFolder(folder.path).truncate_logs(sizes)
    assert (folder.path / "steps.jsonl").read_text() == '{"step": 1}\n'
    assert (folder.path / "evaluation.jsonl").read_text() == ""


def test_the_gain_is_the_mean_difference_of_the_same_questions_with_its_interval() -> None:
    # Differences 1, 0, -1, 1: mean .25; squares .5625 + .0625 + 1.5625 + .5625 = 2.75, by 3: .91667.
    # Margin 1.96 * sqrt(.91667 / 4) = 1.96 * .47871 = .93828.
    found = paired_gain([False, True, True, False], [True, True, False, True])
    assert found == {"exact_match": 0.25, "ci95": [-0.6883, 1.1883]}


def test_equal_outcomes_gain_nothing_for_certain() -> None:
    assert paired_gain([True, False], [True, False]) == {"exact_match": 0.0, "ci95": [0.0, 0.0]}
    assert paired_gain([False], [True]) == {"exact_match": 1.0, "ci95": [1.0, 1.0]}


def test_outcomes_of_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_gain([True], [True, False])
