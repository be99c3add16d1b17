import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from retriever_fakes import ColourEncoder, minilm_folder, write_corpus

from local_dense_retriever import build_index, embedding, encoder_choice, files
from local_dense_retriever.bm25 import Bm25Searcher
from local_dense_retriever.notes import read_note

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
    monkeypatch.setattr(embedding, "CHUNK_ROWS", 2)  # 7 passages: four chunks
    monkeypatch.setattr(encoder_choice, "load_encoder", ChunkEncoder)
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


def test_the_index_has_one_row_per_passage_and_no_temporary_files_remain(folder: Path) -> None:
    assert build(folder) == 0
    index = faiss.read_index(str(folder / "flat.index"))
    assert (index.ntotal, index.d, index.metric_type) == (7, 3, faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_allclose(index.reconstruct(1), [0.002, 1.002, 0.002], rtol=1e-6)
    names = ["c.jsonl", "c.jsonl.offsets", "flat.index", "flat.index.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    note = read_note(folder / "flat.index")
    assert note is not None and note[1:] == (7, 3, "minilm", "fake", "Flat")


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
        ("one passage more", "another corpus digest and rows"),
        ("model", "another retriever model"),
        ("encoder", "another retriever name"),
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


def test_an_existing_index_is_rebuilt_only_with_overwrite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert (folder / "flat.index.partial").stat().st_size == 45 + 6 * 3 * 4  # and a header


def test_two_builds_of_one_index_do_not_mix(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(folder, 1, monkeypatch)
    with (folder / "flat.index.partial").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert build(folder) == 1
    assert "another process is building" in capsys.readouterr().err
    assert build(folder) == 0


def test_a_build_that_another_one_finishes_meanwhile_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between opening the unfinished file and locking it, another process may have given it its final name."""
    interrupt_after(folder, 1, monkeypatch)
    real = fcntl.flock

    def finish_then_lock(file: object, how: int) -> None:
        (folder / "flat.index.partial").rename(folder / "flat.index")
        real(file, how)  # type: ignore[arg-type]

    before = (folder / "flat.index.partial").read_bytes()
    monkeypatch.setattr(files.fcntl, "flock", finish_then_lock)
    assert build(folder) == 1
    assert "another process is building" in capsys.readouterr().err
    assert (folder / "flat.index").read_bytes() == before


# ---- Other types -----------------------------------------------------------------------------------------------------


def test_another_type_is_built_from_the_corpus_and_leaves_no_flat_file(folder: Path) -> None:
    assert build(folder, "--index_type", "SQ8") == 0
    assert type(faiss.read_index(str(folder / "flat.index"))).__name__ == "IndexScalarQuantizer"
    assert sorted(path.name for path in folder.glob("flat*")) == ["flat.index", "flat.index.json"]


def test_a_flat_index_is_converted_without_encoding(folder: Path) -> None:
    assert build(folder) == 0
    ChunkEncoder.calls = 0
    flags = ["--from_index", str(folder / "flat.index"), "--index_path", str(folder / "ivf.index")]
    assert build_index.main([*flags, "--index_type", "IVF1,Flat"]) == 0
    assert ChunkEncoder.calls == 0
    converted, flat = (faiss.read_index(str(folder / name)) for name in ("ivf.index", "flat.index"))
    queries = flat.reconstruct_n(0, 7)
    np.testing.assert_allclose(converted.search(queries, 3)[0], flat.search(queries, 3)[0], rtol=1e-6)
    old, new = read_note(folder / "flat.index"), read_note(folder / "ivf.index")
    assert old is not None and new == old._replace(index_type="IVF1,Flat")


def test_embeddings_of_an_interrupted_build_serve_another_type_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(folder, 3, monkeypatch)
    assert build(folder, "--index_type", "SQ8") == 0
    assert ChunkEncoder.calls == 1


def test_bm25_needs_no_encoder(folder: Path) -> None:
    assert build(folder, "--index_type", "BM25", index="words") == 0
    assert ChunkEncoder.calls == 0
    assert Bm25Searcher(folder / "words").search(["green blue"], topk=1).rows.tolist() == [[5]]
    note = read_note(folder / "words")
    assert note is not None and (note.rows, note.dim, note.index_type) == (7, 0, "BM25")


@pytest.mark.parametrize("name", ["my_checkpoints", "words"])
def test_overwriting_with_bm25_removes_nothing_but_a_bm25_index(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`words.partial` is where the index `words` is written first."""
    (precious := folder / ("my_checkpoints" if name == "my_checkpoints" else "words.partial")).mkdir()
    (precious / "model.safetensors").write_text("weeks of training")
    assert build(folder, "--index_type", "BM25", "--overwrite", index=name) == 1
    assert f"{precious} exists and is not a BM25 index: remove it yourself" in capsys.readouterr().err
    assert (precious / "model.safetensors").read_text() == "weeks of training"


def test_a_bm25_index_is_overwritten_by_another(folder: Path) -> None:
    for texts in (TEXTS, ["red"]):
        write_corpus(folder / "c.jsonl", texts)
        assert build(folder, "--index_type", "BM25", "--overwrite", index="words") == 0
        assert Bm25Searcher(folder / "words").about.rows == len(texts)


@pytest.mark.parametrize("flags", [[], ["--index_type", "BM25"]])
def test_the_corpus_itself_is_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    before = (folder / "c.jsonl").read_bytes()
    assert build(folder, "--overwrite", *flags, index="c.jsonl") == 1
    assert "is also the input" in capsys.readouterr().err
    assert (folder / "c.jsonl").read_bytes() == before


def test_a_passage_that_the_encoder_makes_nan_of_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ChunkEncoder.encode_passages

    def encode(self: ChunkEncoder, passages: Sequence[str]) -> NDArray[np.float32]:
        return np.where([[text == "red blue"] for text in passages], np.float32("nan"), real(self, passages))

    monkeypatch.setattr(ChunkEncoder, "encode_passages", encode)
    assert build(folder) == 1
    assert "returns NaN for passage number 5 of the corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("index_type", "complaint"),
    [("nonsense", "cannot make --index_type nonsense (could not parse"), ("PQ2", "cannot make --index_type PQ2 (")],
)
def test_a_type_that_faiss_cannot_make_is_reported_in_one_sentence_before_anything_is_encoded(
    folder: Path, capsys: pytest.CaptureFixture[str], index_type: str, complaint: str
) -> None:
    assert build(folder, "--index_type", index_type) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert ChunkEncoder.calls == 0


# ---- Killed ----------------------------------------------------------------------------------------------------------

BUILD = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from local_dense_retriever import build_index, embedding, files
embedding.CHUNK_ROWS = {chunk_rows}
if __name__ == "__main__":
    {prelude}
    sys.exit(build_index.main(sys.argv[1:]))
"""
DEVICES = """from local_dense_retriever import machine
    machine.gpus = lambda: ["cpu"] * {}
"""
FAKE_ENCODER = """import types
    from retriever_fakes import ColourEncoder
    class SlowEncoder(ColourEncoder):
        def __init__(self, *_, **__): pass
        def encode_passages(self, passages):
            time.sleep(0.02)
            return super().encode_passages(passages)
    sys.modules["local_dense_retriever.encoder_choice"] = types.SimpleNamespace(load_encoder=SlowEncoder)
    sys.modules["local_dense_retriever.machine"] = types.SimpleNamespace(gpus=list)
"""


def build_command(corpus: Path, index: Path, chunk_rows: int, prelude: str) -> list[str]:
    """The builder in a process of its own, after `prelude`, with MiniLM unless that puts another in its place."""
    tests = Path(__file__).parents[1]
    code = BUILD.format(root=str(tests.parent), tests=str(tests), chunk_rows=chunk_rows, prelude=prelude)
    command = [sys.executable, "-c", code, "--corpus_path", str(corpus), "--index_path", str(index)]
    return [*command, "--retriever_name", "minilm", "--retriever_model", minilm_folder()]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run(command: list[str], kill_after_s: float | None = None) -> float | None:
    """Seconds from the command's first line to its end; None if it was killed, so long after that line."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # several processes of several threads each would be slow
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=one_thread
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("encoding ")
        began = time.monotonic()
        try:
            process.wait(kill_after_s or 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return None
    assert process.returncode == 0
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.model
def test_two_devices_give_the_bytes_of_one(tmp_path: Path) -> None:
    """Real processes; two CPUs stand for two GPUs. One that is killed leaves no process behind."""
    texts = [f"passage number {row} about {'stone ' * (row % 9)}" for row in range(40)]
    corpus = write_corpus(tmp_path / "c.jsonl", texts)
    for number, name in ((1, "one"), (2, "two")):
        command = build_command(corpus, tmp_path / f"{name}.index", chunk_rows=8, prelude=DEVICES.format(number))
        assert run(command) is not None
    assert (tmp_path / "two.index").read_bytes() == (tmp_path / "one.index").read_bytes()

    command = build_command(corpus, tmp_path / "three.index", chunk_rows=8, prelude=DEVICES.format(2))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while len(workers := children(process.pid)) < 3:  # two, and multiprocessing's own helper
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fake", "passages", "chunk_rows", "kills"),
    [
        pytest.param(FAKE_ENCODER, 600, 4, 20, id="quick encoder"),
        pytest.param("pass", 100, 4, 2, id="MiniLM", marks=pytest.mark.model),
    ],
)
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(
    tmp_path: Path, fake: str, passages: int, chunk_rows: int, kills: int
) -> None:
    texts = [f"red {'green ' * (row % 17)}{'blue ' * (row % 11)}number {row}" for row in range(passages)]
    corpus = write_corpus(tmp_path / "c.jsonl", texts)
    whole, killed = tmp_path / "whole.index", tmp_path / "killed.index"
    whole_s = run(build_command(corpus, whole, chunk_rows, fake))
    assert whole_s is not None
    command = build_command(corpus, killed, chunk_rows, fake)
    moment, hits = random.Random(0), 0
    while hits < kills:
        hits += run(command, moment.uniform(0, 1.6 * whole_s / kills)) is None
        if killed.exists():  # it got to its end first
            assert killed.read_bytes() == whole.read_bytes()
            killed.unlink()
    run(command)
    assert killed.read_bytes() == whole.read_bytes()
