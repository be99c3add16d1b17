"""The evaluation sets beside a test split: one of each data set, and a closed-book control."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import oai_format_data_preprocess
from evaluation.questions import FROM_MEMORY, choose, read_questions


def write(path: Path, sources: dict[str, int]) -> Path:
    rows = [
        {"question": f"question {number} of {source}", "golden_answers": ["x"], "data_source": source}
        for source, count in sources.items()
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: object) -> int:
    return oai_format_data_preprocess.main([str(argument) for argument in arguments])


@pytest.fixture
def prepared(tmp_path: Path):
    """Prepares a test split of two sets; gives its folder."""

    def prepare(*more: object, sources: dict[str, int] | None = None, form: str = "chat") -> Path:
        raw = write(tmp_path / "own.jsonl", sources or {"nq": 9, "hotpotqa": 4})
        out = tmp_path / "out"
        assert run("--input", raw, "--splits", "test", "--local_dir", out, "--format", form, *more) == 0
        return out

    return prepare


def sets_of(folder: Path) -> dict[str, dict]:
    found = yaml.safe_load((folder / "eval.yaml").read_text())
    return {one["name"]: one for one in found["eval"]["datasets"]}


def test_each_set_has_a_file_and_all_are_scored_by_exact_match(prepared) -> None:
    folder = prepared("--eval_per_set", 5)
    found = yaml.safe_load((folder / "eval.yaml").read_text())
    assert found["eval"]["defaults"] == {"custom_rm_path": "generate_with_search.exact_match"}
    sizes = {name: pq.read_metadata(one["path"]).num_rows for name, one in sets_of(folder).items()}
    assert sizes == {"nq": 5, "hotpotqa": 4, "closed_book": 9}
    assert all(Path(one["path"]).is_absolute() for one in sets_of(folder).values())


@pytest.mark.parametrize("form", ["chat", "xml", "text"])
def test_the_questions_are_those_that_an_evaluation_chooses(prepared, form: str) -> None:
    folder = prepared("--eval_per_set", 5, form=form)
    chosen = {question.id for question in choose(read_questions([folder / "test.parquet"]), 5)}
    files = [Path(one["path"]) for name, one in sets_of(folder).items() if name != "closed_book"]
    assert {question.id for question in read_questions(files)} == chosen
    assert {question.id for question in read_questions([folder / "eval" / "closed_book.parquet"])} == chosen
    schema = pq.read_schema(folder / "test.parquet")
    assert all(pq.read_schema(file) == schema for file in files)


def test_the_control_asks_from_memory_and_runs_no_search(prepared) -> None:
    folder = prepared("--eval_per_set", 2)
    control = sets_of(folder)["closed_book"]
    assert control["custom_generate_function_path"] == "generate_with_search.generate_closed_book"
    for row in pq.read_table(control["path"]).to_pylist():
        assert row["prompt"][0]["content"] == FROM_MEMORY and "search" not in json.dumps(row["prompt"])


def test_no_sets_are_made_of_a_train_split_or_if_none_are_wanted(prepared, tmp_path: Path) -> None:
    assert run("--input", tmp_path / "own.jsonl", "--local_dir", tmp_path) == 1  # not there yet
    folder = prepared("--eval_per_set", 0)
    assert sorted(path.name for path in folder.iterdir()) == ["test.parquet"]
    assert run("--input", tmp_path / "own.jsonl", "--local_dir", tmp_path / "train") == 0
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["train.parquet"]


def test_a_sets_name_that_no_file_can_have_is_made_one(prepared) -> None:
    folder = prepared(sources={"../my set": 2, "a/b": 1, "nq": 1})
    assert list(sets_of(folder)) == [".._my_set", "a_b", "nq", "closed_book"]
    assert {Path(one["path"]).parent for one in sets_of(folder).values()} == {folder / "eval"}


def test_a_set_called_like_the_control_does_not_replace_it(prepared) -> None:
    folder = prepared(sources={"closed_book": 3, "nq": 1})
    assert list(sets_of(folder)) == ["closed_book", "nq", "closed_book_2"]
    assert sets_of(folder)["closed_book_2"]["custom_generate_function_path"]


def test_two_sets_whose_names_become_one_stay_two(prepared) -> None:
    folder = prepared(sources={"a/b": 3, "a b": 1})
    sizes = {name: pq.read_metadata(one["path"]).num_rows for name, one in sets_of(folder).items()}
    assert sizes == {"a_b": 3, "a_b_2": 1, "closed_book": 4}


def test_a_folder_of_odd_characters_survives_slimes_reader(tmp_path: Path) -> None:
    raw = write(tmp_path / "own.jsonl", {"nq": 1})
    odd = tmp_path / "it's: a #folder é"
    assert run("--input", raw, "--splits", "test", "--local_dir", odd) == 0
    assert Path(sets_of(odd)["nq"]["path"]).is_file()


def test_the_summary_names_the_sets_and_where_the_file_goes(prepared, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared("--eval_per_set", 2)
    assert f"{folder}/eval.yaml: evaluation sets nq 2, hotpotqa 2, closed_book 4" in capsys.readouterr().out


def test_a_wrong_number_is_reported_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--eval_per_set", "-1")
    assert "'-1' is not a whole number from 0 up" in capsys.readouterr().err
