import json
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from retriever_fakes import ColourEncoder, write_corpus

from local_dense_retriever import build_index
from local_dense_retriever import encoder as encoder_module

TEXTS = ["red", "green", "blue", "red green", "red blue", "green blue", "red red blue"]


class ChunkEncoder(ColourEncoder):
    """Adds a trace of how many texts it got together, so that batches cut differently give other bytes.

    `stop_after` calls it is interrupted, as by Ctrl-C.
    """

    stop_after = 1000
    calls = 0

    def __init__(self, name: str, model: str, batch_size: int) -> None:
        pass

    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]:
        if ChunkEncoder.calls == ChunkEncoder.stop_after:
            raise KeyboardInterrupt
        ChunkEncoder.calls += 1
        return super().encode_passages(passages) + np.float32(len(passages) / 1000)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_index, "CHUNK_ROWS", 2)  # 7 passages: four chunks
    monkeypatch.setattr(encoder_module, "Encoder", ChunkEncoder)
    monkeypatch.setattr(ChunkEncoder, "calls", 0)
    monkeypatch.setattr(ChunkEncoder, "stop_after", 1000)


def build(folder: Path, *flags: str, index: str = "flat.index") -> int:
    paths = ["--corpus_path", str(folder / "c.jsonl"), "--index_path", str(folder / index)]
    return build_index.main([*paths, "--retriever_name", "minilm", "--retriever_model", "fake", *flags])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "c.jsonl", TEXTS)
    return tmp_path


def interrupt_after(folder: Path, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ChunkEncoder, "stop_after", chunks)
        assert build(folder) == 130
    ChunkEncoder.calls = 0


def test_the_index_holds_one_row_per_passage_and_nothing_is_left_beside_it(folder: Path) -> None:
    assert build(folder) == 0
    index = faiss.read_index(str(folder / "flat.index"))
    assert (index.ntotal, index.d, index.metric_type) == (7, 3, faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_allclose(index.reconstruct(1), [0.002, 1.002, 0.002], rtol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == ["c.jsonl", "flat.index"]


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_a_build_interrupted_and_resumed_gives_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chunks: int
) -> None:
    assert build(folder, index="whole.index") == 0
    ChunkEncoder.calls = 0
    interrupt_after(folder, chunks, monkeypatch)
    assert not (folder / "flat.index").exists()
    assert "run the same command again" in capsys.readouterr().err
    assert build(folder) == 0
    assert ChunkEncoder.calls == 4 - chunks  # what was done is not done again
    assert (folder / "flat.index").read_bytes() == (folder / "whole.index").read_bytes()


def test_rows_written_after_the_last_note_are_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(folder, index="whole.index") == 0
    ChunkEncoder.calls = 0
    interrupt_after(folder, 2, monkeypatch)
    with (folder / "flat.index.partial").open("ab") as file:
        file.write(b"half a row")
    assert build(folder) == 0
    assert (folder / "flat.index").read_bytes() == (folder / "whole.index").read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("same size, another text", "another corpus digest"),
        ("one passage more", "another corpus digest and passages"),
        ("model", "another retriever_model"),
        ("encoder", "another retriever_name"),
        ("note damaged", "cannot be read"),
        ("embeddings lost", "is shorter than"),
    ],
)
def test_a_build_that_cannot_be_continued_starts_afresh_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str, reason: str
) -> None:
    interrupt_after(folder, 2, monkeypatch)
    flags: list[str] = []
    if change == "same size, another text":
        write_corpus(folder / "c.jsonl", [text.replace("green blue", "blue green") for text in TEXTS])
    elif change == "one passage more":
        write_corpus(folder / "c.jsonl", [*TEXTS, "blue"])
    elif change == "model":
        flags = ["--retriever_model", "another"]
    elif change == "encoder":
        flags = ["--retriever_name", "e5"]
    elif change == "note damaged":
        (folder / "flat.index.partial.json").write_text("{")
    else:
        (folder / "flat.index.partial").write_bytes(b"")
    assert build(folder, *flags) == 0
    assert "starting afresh" in (output := capsys.readouterr().out) and reason in output
    assert ChunkEncoder.calls == 4  # all of them


def test_an_index_that_exists_is_built_again_only_when_told_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "flat.index").write_text("old")
    assert build(folder) == 0
    assert "nothing to do (give --overwrite" in capsys.readouterr().out
    assert (folder / "flat.index").read_text() == "old"
    assert build(folder, "--overwrite") == 0
    assert faiss.read_index(str(folder / "flat.index")).ntotal == 7


def test_the_note_counts_the_rows_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(folder, 3, monkeypatch)
    note = json.loads((folder / "flat.index.partial.json").read_text())
    assert note["rows_done"] == 6
    assert (folder / "flat.index.partial").stat().st_size == 6 * 3 * 4


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--corpus_path", "none.jsonl"], "there is no corpus file none.jsonl"),
        (["--index_path", "no/such/folder/flat.index"], "there is no folder"),
        (["--index_path", "."], "is a folder"),
        (["--batch_size", "0"], "--batch_size is 0"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_one(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    assert build(folder, *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error
    assert error.count("\n") == 1
