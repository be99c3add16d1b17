import json
from pathlib import Path

import pytest

from local_dense_retriever.corpus import Corpus, Passage
from local_dense_retriever.errors import InputError

TOY_CORPUS = Path(__file__).parent.parent / "local_dense_retriever" / "toy_corpus.jsonl"


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_both_shapes_of_a_line_give_the_same_passage(tmp_path: Path) -> None:
    lines = [
        {"id": "1", "contents": '"Dijon"\nA city in France.'},
        {"id": 1, "title": "Dijon", "text": "A city in France."},
    ]
    corpus = Corpus(write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines))))
    assert corpus.passages([0, 1]) == [Passage("1", '"Dijon"\nA city in France.')] * 2


def test_passages_come_in_the_order_asked_for_whatever_blank_lines_lie_between(tmp_path: Path) -> None:
    text = '\n{"id": "a", "contents": "é"}\r\n\n  \n{"id": "b", "contents": "ü"}\n{"id": "c", "contents": "z"}'
    corpus = Corpus(write(tmp_path / "c.jsonl", text))
    assert len(corpus) == 3
    assert corpus.passages([2, 0, 1, 0]) == [("c", "z"), ("a", "é"), ("b", "ü"), ("a", "é")]


@pytest.mark.parametrize("row", [-1, 1])
def test_a_row_outside_the_corpus_is_an_error_and_not_another_passage(tmp_path: Path, row: int) -> None:
    corpus = Corpus(write(tmp_path / "c.jsonl", '{"id": "a", "contents": "x"}\n'))
    with pytest.raises(IndexError):
        corpus.passages([row])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", "not JSON"),
        ('{"id": "1", "contents": "x"', "not JSON"),
        ("[1, 2]", "not an object with a field id"),
        ('{"contents": "x"}', "not an object with a field id"),
        ('{"id": "1", "title": "x"}', "no string in a field contents"),
        ('{"id": "1", "contents": ["x"]}', "no string in a field contents"),
        ('{"id": "1", "contents": "\\ud83d"}', "not valid Unicode"),
    ],
)
def test_a_line_that_is_no_passage_is_named_by_file_and_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path / "c.jsonl", f'{{"id": "0", "contents": "x"}}\n{line}\n')
    with pytest.raises(InputError, match=complaint) as caught:
        Corpus(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_bytes_that_are_not_utf8_are_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "0", "contents": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"c\.jsonl:1: this line is not JSON"):
        Corpus(path)


def test_missing_empty_and_compressed_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no corpus file"):
        Corpus(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="has no passage in it"):
        Corpus(write(tmp_path / "empty.jsonl", "\n\n"))
    with pytest.raises(InputError, match="gunzip -k"):
        Corpus(write(tmp_path / "c.jsonl.gz", "x"))


def test_the_toy_corpus_is_in_the_shape_of_wiki_18() -> None:
    corpus = Corpus(TOY_CORPUS)
    for passage in corpus.passages(range(len(corpus))):
        title, text = passage.contents.split("\n")
        assert title.startswith('"') and title.endswith('"') and text
