"""Which questions an evaluation asks: the same ones from every file, order and mode."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from evaluation_helpers import write_data

from evaluation.questions import choose, closed_book, mode_of, read_questions
from search_rollout.protocols.prompts import PromptMode, prompt_row


def row(number: int, source: str = "nq", mode: PromptMode = "generate", gold: str = "yes") -> dict[str, Any]:
    return prompt_row(f"Is {number} prime?", [gold], source, mode=mode, extra={"index": number})


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def ids(*files: Path, per_set: int | None = None, seed: int = 0) -> list[str]:
    return [question.id for question in choose(read_questions(files), per_set, seed)]


@pytest.mark.parametrize("mode", ["generate", "chat", "text"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_choice_is_the_same_from_every_order_file_format_and_mode(
    tmp_path: Path, suffix: str, mode: PromptMode
) -> None:
    expected = ids(write(tmp_path / "all.jsonl", [row(number) for number in range(200)]), per_set=20)
    numbers = random.Random(1).sample(range(200), 200)
    parts = [
        write(tmp_path / f"{part}.{suffix}", [row(number, mode=mode) for number in numbers[part::2]]) for part in (0, 1)
    ]
    assert ids(*parts, per_set=20) == expected
    assert len(expected) == 20


def test_each_set_has_its_own_share_and_a_larger_one_holds_a_smaller(tmp_path: Path) -> None:
    rows = [row(number, source) for source, count in (("nq", 50), ("bamboogle", 5)) for number in range(count)]
    file = write(tmp_path / "all.jsonl", rows)
    few, more = ids(file, per_set=10), ids(file, per_set=20)
    assert sum(name.startswith("nq/") for name in few) == 10
    assert sum(name.startswith("bamboogle/") for name in few) == 5
    assert set(few) < set(more)
    assert len(ids(file)) == 55
    assert ids(file, per_set=10, seed=1) != few


def test_questions_that_read_alike_are_all_kept(tmp_path: Path) -> None:
    rows = [row(1), row(1), row(1, gold="no"), row(1, source="popqa")]
    assert len(set(ids(write(tmp_path / "all.jsonl", rows)))) == 4


def test_the_question_of_an_unprepared_row_is_read_from_its_own_column(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Use the tags. Question: Is 7 prime?"}]
    label = {"ground_truth": {"target": ["yes"]}}
    raw = {"id": "test_7", "question": "Is 7 prime?", "prompt": prompt, "reward_model": label, "data_source": "nq"}
    (question,) = read_questions([write(tmp_path / "raw.parquet", [raw])])
    assert (question.text, question.golds) == ("Is 7 prime?", ("yes",))
    assert question.id == read_questions([write(tmp_path / "one.jsonl", [row(7)])])[0].id


@pytest.mark.parametrize("mode", ["generate", "chat", "text"])
def test_a_closed_book_prompt_names_the_question_and_no_search(tmp_path: Path, mode: PromptMode) -> None:
    (question,) = read_questions([write(tmp_path / "one.jsonl", [row(7, mode=mode)])])
    prompt = closed_book(question).row["prompt"]
    assert isinstance(prompt, str) == (mode == "text")
    assert "Is 7 prime?" in str(prompt) and "search" not in str(prompt)


def test_the_mode_is_that_of_the_rows(tmp_path: Path) -> None:
    xml, chat = write_data(tmp_path / "xml.jsonl"), write_data(tmp_path / "chat.jsonl", "chat")
    assert mode_of(read_questions([xml])) == "xml"
    assert mode_of(read_questions([chat])) == "chat"
    with pytest.raises(ValueError, match="Some rows have tools and some have none"):
        mode_of(read_questions([xml, chat]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "its prompt is neither a string nor messages"),
        ({"prompt": [{"content": "no role"}]}, "its prompt is neither a string nor messages"),
        ({"reward_model": {"ground_truth": {"target": []}}}, "its reward_model holds no gold answer"),
        ({"reward_model": {"ground_truth": {"target": [" "]}}}, "its reward_model holds no gold answer"),
        ({"metadata": None}, "neither its metadata nor its extra_info has the question's text"),
    ],
)
def test_a_row_that_cannot_be_asked_is_reported(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    file = write(tmp_path / "all.jsonl", [row(1), {**row(2), **change}])
    with pytest.raises(ValueError, match=f"Row 2 of .*all.jsonl cannot be asked: {reason}"):
        read_questions([file])


def test_a_missing_column_a_broken_line_and_an_empty_file_are_reported(tmp_path: Path) -> None:
    without = {key: value for key, value in row(1).items() if key != "data_source"}
    with pytest.raises(ValueError, match=r"Row 1 of .* cannot be asked: it has no 'data_source'"):
        read_questions([write(tmp_path / "all.jsonl", [without])])
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"Cannot read .*broken.jsonl: line 1 is not JSON"):
        read_questions([tmp_path / "broken.jsonl"])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="hold no rows"):
        read_questions([tmp_path / "empty.jsonl"])
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"Cannot read .*broken.parquet"):
        read_questions([tmp_path / "broken.parquet"])
