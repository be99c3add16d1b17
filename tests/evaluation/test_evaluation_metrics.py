"""Metrics of a trajectory, their means and intervals, the tables, and the comparison of two runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slime.utils.types import Sample

from evaluation import compare
from evaluation.metrics import scores_of, summarise
from evaluation.report import PUBLISHED, SETS, tables
from search_rollout.samples.record import RolloutRecord, Span, Turn
from search_rollout.search.passage import SearchResult
from search_rollout.trajectory import StopReason


def sample(stop: str = "answered", **score: Any) -> Sample:
    """A rewarded sample; `score` is what the reward function recorded."""
    made = Sample(reward=0.5, response_length=40, status=Sample.Status.COMPLETED)
    if stop != "answered":
        made.status = Sample.Status.TRUNCATED
    record = RolloutRecord(StopReason(stop))
    if not record.discarded:
        record.spans = [Span("turn", 5), Span("observation", 5)] * 2 + [Span("turn", 20)]
        record.turns = [
            Turn("search", queries=["a"], results=[SearchResult("a")]),
            Turn("search", queries=["b"], results=[SearchResult("b", error="gone")]),
            Turn("answer", answer="x"),
        ]
        record.score = {"answer": None, "valid_format": True, "retrieved_gold": True, **score}
    made.metadata["search_r1"] = record.as_json()
    return made


def test_every_metric_of_an_answer() -> None:
    scores = scores_of(sample(answer="the river Nile"), ["Nile", "Nile River"])
    # SQuAD normalisation leaves "river nile": against "nile river" precision and recall are 1; "nile" stands in it.
    assert scores == {
        "answer": "the river Nile",
        "em": 0.0,
        "f1": 1.0,
        "sub_em": 1.0,
        "valid_format": 1.0,
        "searches": 2.0,
        "failed_searches": 1.0,
        "turns": 3.0,
        "gold_found": 1.0,
        "truncated": 0.0,
        "gave_up": 0.0,
        "reward": 0.5,
        "response_tokens": 40.0,
    }
    assert scores_of(sample(answer="The Nile."), ["Nile"])["em"] == 1.0


@pytest.mark.parametrize(("stop", "truncated", "gave_up"), [("turns_used", 1.0, 0.0), ("engine_failed", 0.0, 1.0)])
def test_a_truncated_answer_does_not_count_as_discarded(stop: str, truncated: float, gave_up: float) -> None:
    scores = scores_of(sample(stop), ["Nile"])
    assert (scores["truncated"], scores["gave_up"], scores["em"], scores["f1"]) == (truncated, gave_up, 0.0, 0.0)


def rows(ems: list[float]) -> list[dict[str, float]]:
    metrics = scores_of(sample(), ["Nile"]).keys() - {"answer"}
    return [dict.fromkeys(metrics, 0.0) | {"em": em} for em in ems]


def test_the_average_weighs_sets_not_questions_and_intervals_shrink_with_questions() -> None:
    found = summarise({"nq": rows([1.0, 0.0] * 200), "bamboogle": rows([1.0, 0.0, 0.0, 0.0] * 5)})
    assert found["nq"]["em"].mean == 0.5 and found["bamboogle"]["em"].mean == 0.25
    assert found["average"]["em"].mean == 0.375
    for name, row in found.items():
        assert row["em"].low < row["em"].mean < row["em"].high, name
    # Of 400 throws of a fair coin: 1.96 * sqrt(.25 / 400) = .049 to either side.
    assert found["nq"]["em"].low == pytest.approx(0.451, abs=0.006)
    assert found["nq"]["em"].high == pytest.approx(0.549, abs=0.006)
    assert found["bamboogle"]["em"].high - found["bamboogle"]["em"].low > 0.3


def test_intervals_are_the_same_each_time_and_do_not_depend_on_other_sets() -> None:
    ems = [float(number % 3 == 0) for number in range(100)]
    alone, beside = summarise({"nq": rows(ems)}), summarise({"popqa": rows(ems[:50]), "nq": rows(ems)})
    assert alone["nq"] == beside["nq"]
    assert "average" not in alone
    assert summarise({"nq": rows(ems)}, seed=1)["nq"]["em"] != alone["nq"]["em"]


def test_a_metric_that_never_varies_is_certain() -> None:
    assert summarise({"nq": rows([1.0] * 10)})["nq"]["em"] == (1.0, 1.0, 1.0)


# --- tables -------------------------------------------------------------------------------------------------------


def test_the_papers_figures_have_the_averages_that_it_states() -> None:
    averages = {name: round(sum(figures) / len(SETS), 3) for name, figures in PUBLISHED.items()}
    assert averages == {
        "GRPO, instruct": 0.336,
        "GRPO, base": 0.312,
        "PPO, instruct": 0.325,
        "PPO, base": 0.303,
        "RAG, not trained": 0.270,
    }


def test_the_papers_figures_are_shown_only_for_the_evaluated_sets() -> None:
    found = summarise({"nq": rows([1.0, 0.0]), "bamboogle": rows([0.0, 0.0]), "mine": rows([1.0])})
    lines = tables(found, {"nq": 2, "bamboogle": 2, "mine": 1}).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("exact match"))
    assert lines[start].split() == ["exact", "match", "nq", "bamboogle", "average", "of", "these"]
    assert lines[start + 1].split() == ["this", "run", "0.500", "0.000", "0.250"]
    assert lines[start + 2].split() == ["GRPO,", "instruct", "0.397", "0.232", "0.315"]  # (.397 + .232) / 2 = .3145
    assert not any("verl-tool" in line for line in lines)
    whole = tables(summarise({name: rows([1.0]) for name in SETS}), dict.fromkeys(SETS, 1))
    assert "verl-tool (its README)" in whole and "0.410" in whole
    assert "arXiv" not in tables(summarise({"mine": rows([1.0])}), {"mine": 1})


# --- two runs -----------------------------------------------------------------------------------------------------


def test_mcnemars_test_is_exact() -> None:
    # 1 and 5 of 6 discordant questions: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64.
    assert compare.mcnemar(1, 5) == compare.mcnemar(5, 1) == 14 / 64
    assert compare.mcnemar(0, 0) == compare.mcnemar(3, 3) == 1.0
    assert compare.mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert 0 < compare.mcnemar(400, 600) < 1e-9


def test_a_difference_is_paired() -> None:
    random = np.random.default_rng(0)
    first = (random.random(500) < 0.4).astype(float)
    second = np.maximum(first, (random.random(500) < 0.05).astype(float))  # never worse
    found = compare.compare(list(first), list(second))
    assert found.only_first == 0 and found.only_second > 5 and found.p_value < 0.05
    assert 0 < found.low < found.second - found.first < found.high < 0.1  # unpaired it would be +- .06


def write_run(folder: Path, ems: dict[str, float]) -> Path:
    folder.mkdir()
    lines = [
        json.dumps({"id": name, "data_source": name.partition("/")[0], "scores": {"em": em}})
        for name, em in ems.items()
    ]
    (folder / "trajectories.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_two_runs_are_compared_on_the_questions_that_both_were_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(tmp_path / "a", {"nq/1": 0.0, "nq/2": 0.0, "popqa/1": 1.0, "nq/9": 1.0})
    second = write_run(tmp_path / "b", {"popqa/1": 1.0, "nq/2": 1.0, "nq/1": 0.0})  # finished in another order
    assert compare.main([str(first), str(second), "--json", str(tmp_path / "c.json")]) == 0
    figures = json.loads((tmp_path / "c.json").read_text())
    assert (figures["nq"]["first"], figures["nq"]["second"], figures["nq"]["only_second"]) == (0.0, 0.5, 1)
    assert figures["popqa"]["p_value"] == 1.0
    assert figures[compare.ALL]["questions"] == 3
    shown = capsys.readouterr().out
    assert "+0.500" in shown and "1 questions are left out because only one of the runs has them." in shown


def write_samples(folder: Path, answers: dict[str, list[str | None]]) -> Path:
    """A run with several samples of each question, all with the gold answer "a"; None: not finished."""
    folder.mkdir()
    lines = [
        {"id": name, "sample": at, "data_source": "nq", "scores": {"em": float(answer == "a"), "answer": answer}}
        for name, given in answers.items()
        for at, answer in enumerate(given)
        if answer
    ]
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_of_several_samples_are_paired_by_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_samples(tmp_path / "a", {"q1": ["a", "b", "b", "b"], "q2": ["a", "a", "a", "c"], "q3": ["a"] * 4})
    second = write_samples(tmp_path / "b", {"q1": ["a", "a", "b", "b"], "q2": ["b"] * 4, "q3": ["a", "a", "a", None]})
    found, unpaired = compare.compare_runs(first, second)
    assert unpaired == 1  # q3 lacks a sample in the second run
    assert list(found) == ["nq", "nq, pass@2", "nq, pass@4", "nq, majority@4"]
    mean, pass_2, pass_4, majority_4 = found.values()
    assert (mean.questions, mean.first, mean.second) == (2, 0.5, 0.25)  # (1/4 + 3/4) / 2 and (2/4 + 0) / 2
    assert (mean.only_first, mean.only_second) == (1, 1)
    # 1 - C(3,2)/C(4,2) = 1/2 and 1 - 0 = 1; 1 - C(2,2)/C(4,2) = 5/6 and 0.
    assert (pass_2.first, pass_2.second) == (pytest.approx(3 / 4), pytest.approx(5 / 12))
    assert (pass_4.first, pass_4.second) == (1.0, 0.5)
    assert (majority_4.first, majority_4.second) == (0.5, 0.25)  # b and a; a tie of a with b, and b
    single = write_run(tmp_path / "c", {"q1": 1.0, "q2": 0.0})
    assert list(compare.compare_runs(first, single)[0]) == ["nq"]  # both have exact match only
    assert compare.main([str(first), str(second)]) == 0
    assert "nq, majority@4" in capsys.readouterr().out


def test_incomparable_runs_are_reported_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "a", {"nq/1": 0.0}), write_run(tmp_path / "b", {"nq/2": 0.0})
    assert compare.main([str(first), str(second)]) == 1
    assert "have no question in common" in capsys.readouterr().err
    assert compare.main([str(first), str(tmp_path)]) == 1
    assert f"error: {tmp_path} is neither an evaluation nor a demo run" in capsys.readouterr().err


def test_a_demo_run_is_compared_with_itself_and_with_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, after in (("seed0", 1.0), ("seed1", 0.0)):
        lines = [
            {"id": f"q{n}", "phase": phase, "data_source": "demo", "scores": {"em": em}}
            for phase, em in (("untrained", 0.0), ("before", 0.0), ("after", after))
            for n in range(4)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "summary.json").write_text("{}")
    assert compare.main([str(tmp_path / "seed0")]) == 0
    assert re.search(r"demo +4 +0.000 +1.000 +\+1.000", capsys.readouterr().out)
    assert compare.main([str(tmp_path / "seed0"), str(tmp_path / "seed1")]) == 0
    assert re.search(r"demo +4 +1.000 +0.000 +-1.000", capsys.readouterr().out)


def test_a_single_folder_that_cannot_be_compared_is_reported_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trajectories.jsonl").write_text("")
    assert compare.main([str(tmp_path)]) == 1
    assert "name a second evaluation to compare it with" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("{}")
    assert compare.main([str(tmp_path)]) == 1
    assert "has not reached its last evaluation" in capsys.readouterr().err
    (tmp_path / "trajectories.jsonl").write_text('{"phase": "after", "tokens": ["a"]}\n')
    assert compare.main([str(tmp_path)]) == 1
    assert "is a demo run of an older version" in capsys.readouterr().err
