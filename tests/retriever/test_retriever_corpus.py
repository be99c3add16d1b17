import json
import os
from pathlib import Path

import pytest

from local_dense_retriever import corpus as corpus_module
from local_dense_retriever.corpus import Corpus, Passage, offsets_path
from local_dense_retriever.errors import InputError

TOY_CORPUS = Path(__file__).parents[2] / "local_dense_retriever" / "toy_corpus.jsonl"


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
        ("[1, 2]", "not an object with a string or number as its id"),
        ('{"contents": "x"}', "not an object with a string or number as its id"),
        ('{"id": {}, "contents": "x"}', "not an object with a string or number as its id"),
        ('{"id": "1", "title": "x"}', "neither a string as contents"),
        ('{"id": "1", "contents": ["x"]}', "neither a string as contents"),
        ('{"id": "1", "title": null, "text": "x"}', "nor strings as title and text"),
        ('{"id": "1", "title": "x", "text": 7}', "nor strings as title and text"),
        ('{"id": "1", "contents": "\\ud83d"}', "the field contents is not valid Unicode"),
        ('{"id": "\\udc00", "contents": "x"}', "the field id is not valid Unicode"),
        ("\x0b", "not JSON"),
        (" \x0c ", "not JSON"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
    ],
)
def test_a_line_that_is_not_a_passage_is_reported_with_file_and_number(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = write(tmp_path / "c.jsonl", f'{{"id": "0", "contents": "x"}}\n{line}\n')
    with pytest.raises(InputError, match=complaint) as caught:
        Corpus(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_bytes_that_are_not_utf8_are_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "0", "contents": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"c\.jsonl:1: this line is not JSON"):
        Corpus(path)


def test_missing_empty_and_compressed_files_have_different_messages(tmp_path: Path) -> None:
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


# ---- The sidecar -----------------------------------------------------------------------------------------------------

LINES = '{"id": "a", "contents": "x"}\n\n{"id": "b", "contents": "y"}\n'


def parse_counts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Grows by each line that is parsed from now on."""
    parsed: list[bytes] = []
    real = corpus_module.parse_passage
    monkeypatch.setattr(corpus_module, "parse_passage", lambda line: parsed.append(line) or real(line))
    return parsed


def test_a_corpus_opened_again_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.jsonl", LINES)
    first = Corpus(path)
    parsed = parse_counts(monkeypatch)
    second = Corpus(path)
    assert (len(second), second.digest, parsed) == (2, first.digest, [])
    assert second.passages([1]) == [("b", "y")]


@pytest.mark.parametrize(
    "how", ["longer", "touched", "sidecar cut short", "sidecar of something else", "sidecar empty"]
)
def test_a_sidecar_that_does_not_fit_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = write(tmp_path / "c.jsonl", LINES)
    digest = Corpus(path).digest
    sidecar = offsets_path(path)
    if how == "longer":
        write(path, LINES + '{"id": "c", "contents": "z"}\n')
    elif how == "touched":
        os.utime(path, ns=(0, 0))
    else:
        content = {"cut short": sidecar.read_bytes()[:-3], "of something else": b"x" * 100, "empty": b""}
        sidecar.write_bytes(content[how.removeprefix("sidecar ")])
    parsed = parse_counts(monkeypatch)
    again = Corpus(path)
    assert len(again) == len(parsed) == (3 if how == "longer" else 2)
    assert (again.digest == digest) == (how != "longer")


def test_a_corpus_with_a_bad_line_leaves_no_sidecar(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", LINES + "bad")
    with pytest.raises(InputError):
        Corpus(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_sidecar_that_cannot_be_written_is_said_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.jsonl", LINES)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus_module.os, "replace", refuse)
    assert Corpus(path).passages([0]) == [("a", "x")]
    assert "c.jsonl.offsets (Permission denied): every start has to read the whole corpus" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_every_change_is_said_and_done_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "c.jsonl", LINES)
    # Cannot be opened for writing, nor removed, like every name on a read-only disk.
    (tmp_path / f"c.jsonl.offsets.{os.getpid()}.tmp").mkdir()
    assert Corpus(path).passages([0]) == [("a", "x")]
    assert "every start has to read the whole corpus" in capsys.readouterr().err
