"""`search-r1 audit-tokens` as a command: what it reads, prints and returns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_helpers import CHAT, TOKENIZER, XML, foreign
from test_audit_scoring import MODEL, rolled
from viewer_helpers import write_jsonl

from evaluation import audit_tokens
from evaluation.audit_scoring import score

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    TOKENIZER.save_pretrained(folder)
    MODEL.save_pretrained(folder)
    return str(folder)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = audit_tokens.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, " ".join(said.out.split()), said.err  # rows are wrapped


def test_sound_samples_exit_with_0_and_faults_with_1(tmp_path, model_folder, capsys):
    sound = write_jsonl(tmp_path / "sound.jsonl", [foreign(), foreign(CHAT, index=1)])
    status, out, _ = run(capsys, sound, "--tokenizer", model_folder)
    assert status == 0 and "✗" not in out and "2 by marks in the text" in out
    bad = tmp_path / "bad.pt"
    torch.save({"rollout_id": 0, "samples": [foreign(), foreign(index=1, reward=None)]}, bad)
    status, out, _ = run(capsys, sound, bad, "--tokenizer", model_folder)
    assert status == 1 and f"✗ shape reward 1 of 4 samples; the first: no reward ({bad}, sample 1)" in out


def test_with_a_model_the_tokens_are_scored(tmp_path, model_folder, capsys):
    file = write_jsonl(tmp_path / "x.jsonl", [rolled(number=number) for number in range(4)])
    status, out, _ = run(capsys, file, "--model", model_folder, "--samples", 3, "--sent", "ids")
    assert status == 0 and "of 3 samples, temperature 1)" in out and "✓ model history" in out


def test_where_only_the_environment_is_trained_there_is_nothing_to_score(tmp_path, model_folder, capsys):
    fields = foreign(tuple((author, text.strip()) for author, text in XML))  # space may be by either
    fields["loss_mask"] = [1 - trained for trained in fields["loss_mask"]]
    status, out, _ = run(capsys, write_jsonl(tmp_path / "x.jsonl", [fields]), "--model", model_folder)
    assert status == 1 and "– model log-probs no sample has trained tokens" in out


def test_of_a_demo_run_the_phase_of_the_model_is_scored(tmp_path, capsys):
    for phase in ("before", "after"):
        TOKENIZER.save_pretrained(tmp_path / phase)
    MODEL.save_pretrained(tmp_path / "after")
    (tmp_path / "summary.json").write_text("{}")
    samples = [rolled() | {"phase": phase, "rollout_log_probs": None} for phase in ("before", "step 1")]
    write_jsonl(tmp_path / "trajectories.jsonl", [*samples, rolled(number=1) | {"phase": "after"}])
    _, out, _ = run(capsys, tmp_path, "--model", tmp_path / "after")
    assert "of 1 samples, temperature 1)" in out
    _, out, _ = run(capsys, tmp_path)  # the run knows its tokenizer
    assert "✓ text text of ids 3 samples" in out


def test_ids_that_the_model_lacks_are_reported(tmp_path, model_folder, capsys):
    fields = foreign()
    fields["tokens"] = [*fields["tokens"][:-1], 9999]
    status, out, _ = run(capsys, write_jsonl(tmp_path / "x.jsonl", [fields]), "--model", model_folder)
    assert status == 1 and "✗ model log-probs id 9999 is outside its vocabulary" in out


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("", [], "There is no sample in these files."),
        ("[1]\n", [], "is not a JSON object"),
        ("{}\n", ["--tokenizer", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_an_unusable_file_is_reported_in_one_sentence_with_status_2(tmp_path, capsys, lines, options, message):
    (tmp_path / "x.jsonl").write_text(lines)
    status, out, err = run(capsys, tmp_path / "x.jsonl", *options)
    assert status == 2 and out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_folder_without_weights_is_reported(tmp_path, model_folder, capsys):
    TOKENIZER.save_pretrained(tmp_path / "empty")
    file = write_jsonl(tmp_path / "x.jsonl", [foreign()])
    status, _, err = run(capsys, file, "--model", tmp_path / "empty")
    assert status == 2 and f"{tmp_path / 'empty'} holds no model" in err


def test_a_missing_file_is_reported(tmp_path, capsys):
    assert run(capsys, tmp_path / "none.pt") == (2, "", f"error: There is no file {tmp_path / 'none.pt'}.\n")


def test_the_choice_of_samples_is_fair_and_always_the_same(tmp_path, model_folder, capsys, monkeypatch):
    scored: list[str] = []

    def watched(model: Any, sample: Any, temperature: float) -> Any:
        scored.append(sample.where.rpartition(", ")[2])
        return score(model, sample, temperature)

    monkeypatch.setattr(audit_tokens, "score", watched)
    few, many = (write_jsonl(tmp_path / f"{count}.jsonl", [rolled()] * count) for count in (2, 20))
    for file, count in ((few, 2), (many, 3), (many, 3)):
        run(capsys, file, "--model", model_folder, "--samples", 3)
        assert len(set(scored[-count:])) == count
    assert scored[2:5] == scored[5:] and sorted(scored[5:]) != ["line 1", "line 2", "line 3"]


def test_json_lines_of_any_shape_never_crash_it(tmp_path: Path, model_folder: str, capsys) -> None:
    odd = [{}, {"tokens": [1], "response_length": "1"}, foreign(metadata=float("nan")), foreign(prompt=None)]
    odd += [
        foreign(metadata={"search_r1": {"version": 9}}),
        foreign(response_length=0, loss_mask=[], rollout_log_probs=[]),
    ]
    odd += [foreign(group_index=None, index=None), foreign(reward=True), foreign(weight_versions=None)]
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps(fields) + "\n" for fields in odd))
    assert run(capsys, file, "--tokenizer", model_folder)[0] == 1
