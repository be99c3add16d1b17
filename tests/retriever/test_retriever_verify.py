"""verify.py over small real files: what it says of good ones, and of each kind of bad one."""

from pathlib import Path

import numpy as np
import pytest
from retriever_fakes import ColourEncoder, write_corpus, write_flat_index

from local_dense_retriever import build_index, encoder_choice, verify

# 60 texts whose mixtures of colours are all different
TEXTS = [f"{'red ' * (row % 7)}{'green ' * (row % 5)}{'blue ' * (1 + row)}" for row in range(60)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encoder_choice, "load_encoder", lambda name, model: ColourEncoder())
    write_corpus(tmp_path / "c.jsonl", TEXTS)
    write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(TEXTS))
    return tmp_path


def run(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str, index: str = "flat.index") -> tuple[int, str]:
    paths = ["--index_path", str(folder / index), "--corpus_path", str(folder / "c.jsonl")]
    capsys.readouterr()
    code = verify.main([*paths, "--retriever_name", "minilm", "--retriever_model", "fake", *flags])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_good_index_passes_every_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run(folder, capsys, "--flat_index", str(folder / "flat.index"))
    assert code == 0 and output.count("ok  ") == 5 and "FAIL" not in output
    assert "recall@3 1.000 over 60 queries" in output


def test_shifted_rows_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_flat_index(folder / "flat.index", np.roll(ColourEncoder().encode_passages(TEXTS), 1, axis=0))
    code, output = run(folder, capsys)
    assert code == 1
    assert "FAIL stored vectors match their passages" in output
    assert "of 60 passages are among the first 3" in output


def test_vectors_that_are_not_of_length_one_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_flat_index(folder / "flat.index", 2 * ColourEncoder().encode_passages(TEXTS))
    code, output = run(folder, capsys)
    assert code == 1 and "FAIL stored vectors have length 1, give or take 1.0e+00" in output


def test_an_index_too_coarse_fails_on_recall(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--from_index",
        str(folder / "flat.index"),
        "--index_path",
        str(folder / "coarse"),
        "--index_type",
        "PQ1x1",
    ]
    assert build_index.main(flags) == 0
    code, output = run(folder, capsys, "--flat_index", str(folder / "flat.index"), index="coarse")
    assert code == 1 and "FAIL recall@3 0." in output


def test_queries_come_from_a_file_if_one_is_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "q.txt").write_text("red\n\ngreen blue\n")
    flags = ["--flat_index", str(folder / "flat.index"), "--queries_path", str(folder / "q.txt")]
    assert "over 2 queries" in run(folder, capsys, *flags)[1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("short corpus", "has 60 rows but the corpus"),
        ("no index", "there is no file"),
        ("sample", "must be at least 1"),
    ],
)
def test_an_index_that_cannot_be_checked_is_reported_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], change: str, complaint: str
) -> None:
    flags = ["--sample", "0"] if change == "sample" else []
    if change == "short corpus":
        write_corpus(folder / "c.jsonl", TEXTS[:-1])
    code, output = run(folder, capsys, *flags, index="none" if change == "no index" else "flat.index")
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 1 and complaint in error
