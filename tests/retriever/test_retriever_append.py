"""`build_index.py --append`: new passages for a corpus and its flat index."""

import fcntl
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from retriever_fakes import ColourEncoder, minilm_folder

from local_dense_retriever import appending, build_index, embedding, encoder_choice
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.downloaded import Piece, check_downloaded, parse_note
from local_dense_retriever.errors import InputError
from local_dense_retriever.notes import check_belongs, read_note

OLD = ["red", "green", "blue", "red green", "red blue", "green blue", "red red blue"]
NEW = ["blue blue red", "green green blue", "red red red green", "blue green"]
MODEL = ["--retriever_name", "minilm", "--retriever_model", "fake"]


class BatchEncoder(ColourEncoder):
    """Leaves a trace of how many texts it got together, so that batches cut differently give other bytes."""

    encoded: ClassVar[list[str]] = []

    def __init__(self, name: str, model: str, batch_size: int) -> None:
        pass

    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]:
        BatchEncoder.encoded += passages
        return super().encode_passages(passages) + np.float32(len(passages) / 1000)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CHUNK_ROWS", 3)  # 7 passages: the last chunk holds one
    monkeypatch.setattr(appending, "COPY_ROWS", 2)
    monkeypatch.setattr(appending, "KNOWN_ROWS", 2)
    monkeypatch.setattr(encoder_choice, "load_encoder", BatchEncoder)
    monkeypatch.setattr(BatchEncoder, "encoded", [])


def lines(texts: Sequence[str], first: int = 0) -> str:
    rows = ({"id": f"p{first + row}", "contents": text} for row, text in enumerate(texts))
    return "".join(json.dumps(row) + "\n" for row in rows)


def build(folder: Path, *flags: str, corpus: str = "c.jsonl", index: str = "flat.index") -> int:
    paths = ["--corpus_path", str(folder / corpus), "--index_path", str(folder / index)]
    return build_index.main([*paths, *MODEL, *flags])


def append(folder: Path, *flags: str, more: str = "more.jsonl", index: str = "flat.index") -> int:
    return build(folder, "--append", str(folder / more), *flags, index=index)


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str, **names: str) -> str:
    """The one sentence with which an append is refused; no file but sidecars of corpora is changed or left."""
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert append(folder, *flags, **names) == 1
    after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {path: text for path, text in after.items() if path.suffix != ".offsets"} == {
        path: text for path, text in before.items() if path.suffix != ".offsets"
    }
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "c.jsonl").write_text(lines(OLD))
    (tmp_path / "more.jsonl").write_text(lines(NEW, first=len(OLD)))
    assert build(tmp_path) == 0
    (tmp_path / "whole.jsonl").write_text(lines([*OLD, *NEW]))
    assert build(tmp_path, corpus="whole.jsonl", index="whole.index") == 0
    capsys.readouterr()
    BatchEncoder.encoded.clear()
    return tmp_path


def assert_as_rebuilt(folder: Path, index: str = "flat.index") -> None:
    assert (folder / "c.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert (folder / index).read_bytes() == (folder / "whole.index").read_bytes()
    assert read_note(folder / index) == read_note(folder / "whole.index")
    corpus, whole = Corpus(folder / "c.jsonl"), Corpus(folder / "whole.jsonl")
    assert corpus.digest == whole.digest and list(corpus) == list(whole)
    check_belongs(folder / index, read_note(folder / index), corpus, "minilm")


def test_an_append_gives_the_bytes_of_a_rebuild_and_leaves_nothing_else(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert append(folder) == 0
    assert_as_rebuilt(folder)
    assert {path.name for path in folder.iterdir()} == names | {"more.jsonl.offsets"}


def test_the_old_passages_are_not_encoded_again_but_for_the_last_chunk_and_a_few_to_know_the_encoder(
    folder: Path,
) -> None:
    assert append(folder) == 0
    known, last_chunk = OLD[-2:], OLD[6:]
    assert BatchEncoder.encoded == [*known, *last_chunk, *NEW]


@pytest.mark.parametrize("old", range(1, 8))
def test_any_length_of_the_old_corpus_gives_the_bytes_of_a_rebuild(folder: Path, old: int) -> None:
    """Chunks hold three: the old passages end before, on and behind a border."""
    everything = [*OLD, *NEW]
    (folder / "c.jsonl").write_text(lines(everything[:old]))
    (folder / "more.jsonl").write_text(lines(everything[old:], first=old))
    assert build(folder, "--overwrite") == 0
    assert append(folder) == 0
    assert_as_rebuilt(folder)


def test_the_corpus_that_is_not_read_again_afterwards_has_its_offsets(folder: Path) -> None:
    assert append(folder) == 0
    before = (folder / "c.jsonl.offsets").stat().st_mtime_ns
    Corpus(folder / "c.jsonl")
    assert (folder / "c.jsonl.offsets").stat().st_mtime_ns == before


def test_the_same_append_again_adds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert append(folder) == 0
    capsys.readouterr()
    BatchEncoder.encoded.clear()
    assert append(folder) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert BatchEncoder.encoded == []
    assert_as_rebuilt(folder)


def test_a_last_line_without_its_end_gets_one(folder: Path) -> None:
    (folder / "c.jsonl").write_text(lines(OLD).rstrip("\n"))
    assert build(folder, "--overwrite") == 0
    assert append(folder) == 0
    assert_as_rebuilt(folder)


def test_blank_lines_before_the_new_passages_are_left_out(folder: Path) -> None:
    (folder / "more.jsonl").write_text("\n \n" + lines(NEW, first=len(OLD)))
    assert append(folder) == 0
    assert_as_rebuilt(folder)


def test_passages_are_appended_one_file_after_the_other(folder: Path) -> None:
    for row, text in enumerate(NEW):
        (folder / "one.jsonl").write_text(lines([text], first=len(OLD) + row))
        assert append(folder, more="one.jsonl") == 0
    assert_as_rebuilt(folder)


def test_a_second_index_of_the_corpus_catches_up(folder: Path) -> None:
    """The corpus has the passages already, from the append to its other index."""
    shutil.copy(folder / "flat.index", folder / "second.index")
    shutil.copy(folder / "flat.index.json", folder / "second.index.json")
    assert append(folder) == 0
    assert append(folder, index="second.index") == 0
    assert_as_rebuilt(folder, "second.index")


def test_an_index_without_a_note_is_judged_by_its_rows(folder: Path) -> None:
    (folder / "flat.index.json").unlink()
    assert append(folder) == 0
    assert_as_rebuilt(folder)


def test_links_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A corpus on another disk stays there."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("c.jsonl", "flat.index", "flat.index.json"):
        shutil.move(folder / name, elsewhere / name)
        (folder / name).symlink_to(elsewhere / name)
    assert append(folder) == 0
    assert_as_rebuilt(folder)
    assert (folder / "c.jsonl").is_symlink() and (folder / "flat.index").is_symlink()


def test_a_server_that_runs_meanwhile_keeps_the_old_files(folder: Path) -> None:
    corpus, index = Corpus(folder / "c.jsonl"), np.memmap(folder / "flat.index", mode="r")
    before = bytes(index)
    assert append(folder) == 0
    assert bytes(index) == before
    assert [passage.contents for passage in corpus.passages(range(len(corpus)))] == OLD


def test_outdated_indexes_of_the_corpus_are_named_with_the_command_that_mends_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat, words = folder / "flat.index", folder / "words"
    assert build(folder, "--index_type", "BM25", index="words") == 0
    assert (
        build_index.main(["--from_index", str(flat), "--index_path", str(folder / "sq8.index"), "--index_type", "SQ8"])
        == 0
    )
    capsys.readouterr()
    shutil.copy(flat, folder / "second.index")
    shutil.copy(folder / "flat.index.json", folder / "second.index.json")
    assert append(folder) == 0
    outdated = [line for line in capsys.readouterr().out.splitlines() if "is outdated" in line]
    assert len(outdated) == 3
    for line in outdated:
        command = shlex.split(line.partition("build_index.py ")[2])
        assert build_index.main(command) == 0
    corpus = Corpus(folder / "c.jsonl")
    assert faiss.read_index(str(folder / "sq8.index")).ntotal == len(corpus)
    for index in (folder / "sq8.index", folder / "second.index", words):
        check_belongs(index, read_note(index), corpus, "minilm")
    assert_as_rebuilt(folder)


def test_a_downloaded_corpus_and_index_still_count_as_complete_after_appending(folder: Path) -> None:
    """Else download.py would fetch the shorter ones again, over these."""
    (inner := folder / "e5").mkdir()
    (folder / "flat.index").rename(inner / "e5")
    (folder / "flat.index.json").unlink()
    sizes = {"c.jsonl": (folder / "c.jsonl").stat().st_size, "e5": (inner / "e5").stat().st_size, "other": 7}
    note = folder / "download.json"
    note.write_text(json.dumps({name: [Piece(size, None)] for name, size in sizes.items()}))
    assert append(folder, index="e5") == 0
    assert (inner / "e5").read_bytes() == (folder / "whole.index").read_bytes()
    check_downloaded(folder / "c.jsonl")
    check_downloaded(folder / "e5")
    assert parse_note(note.read_text())["other"] == [Piece(7, None)]


# ---- Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("p7", "x"), ("p7", "y")], "has the id p7 twice"),
        ([("p7", "x"), ("p7", "x")], "has the id p7 twice"),
        ([("p2", "another text")], "has another passage with the id p2"),
        ([("p7", "x"), ("p2", "blue")], "1 of the 2 passages of"),
    ],
)
def test_ids_that_are_taken_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, str]], complaint: str
) -> None:
    (folder / "more.jsonl").write_text("".join(json.dumps({"id": key, "contents": text}) + "\n" for key, text in rows))
    assert complaint in refused(folder, capsys)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--retriever_model", "other"],
            "was built with --retriever_name minilm --retriever_model fake: give the same",
        ),
        (["--retriever_name", "e5"], "was built with --retriever_name minilm --retriever_model fake: give the same"),
        (["--overwrite"], "leave out --from_index"),
        (["--index_type", "SQ8"], "leave out --from_index"),
        (["--batch_size", "0"], "--batch_size is 0"),
    ],
)
def test_another_encoder_and_other_work_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    assert complaint in refused(folder, capsys, *flags)


def test_an_encoder_that_makes_other_vectors_is_refused_whatever_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "flat.index.json").unlink()
    monkeypatch.setattr(
        BatchEncoder, "encode_passages", lambda self, texts: ColourEncoder().encode_passages(texts)[:, ::-1]
    )
    assert append(folder) == 1
    assert "the encoder does not make the vectors in" in capsys.readouterr().err
    assert (folder / "c.jsonl").read_text() == lines(OLD)


@pytest.mark.parametrize(
    ("index_type", "complaint"),
    [("SQ8", "is compressed and cannot grow"), ("BM25", "is a BM25 index, which cannot grow")],
)
def test_indexes_that_cannot_grow_are_refused_with_the_way_to_go(
    folder: Path, capsys: pytest.CaptureFixture[str], index_type: str, complaint: str
) -> None:
    assert build(folder, "--index_type", index_type, index="other") == 0
    capsys.readouterr()
    assert complaint in refused(folder, capsys, index="other")


def test_an_index_of_another_corpus_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.jsonl").write_text(lines([*OLD[:-1], "green"]))
    assert "was not made from" in refused(folder, capsys)


def test_a_missing_index_a_missing_corpus_and_a_bad_line_are_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no index" in refused(folder, capsys, index="none")
    assert "there is no corpus file" in refused(folder, capsys, "--corpus_path", str(folder / "none" / "c.jsonl"))
    (folder / "more.jsonl").write_text(lines(NEW, first=7) + "bad\n")
    assert "more.jsonl:5: this line is not JSON" in refused(folder, capsys)


def test_too_small_a_disk_is_found_before_anything_is_copied(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage(folder)._replace(free=400)
    monkeypatch.setattr(appending.shutil, "disk_usage", lambda path: room)
    assert "keeps the old files until the new ones are complete" in refused(folder, capsys)
    monkeypatch.setattr(appending.shutil, "disk_usage", lambda path: room._replace(free=2000))
    assert append(folder) == 0


def test_two_appends_to_one_corpus_do_not_mix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "c.jsonl.appended").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert append(folder) == 1
    assert "another --append to" in capsys.readouterr().err
    assert append(folder) == 0
    assert_as_rebuilt(folder)


# ---- Killed ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a killed process closes no files
@pytest.mark.parametrize("number", range(17))
def test_a_kill_before_any_rename_or_removal_is_mended_by_the_same_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Until then corpus and index are both the old ones, or both the new ones, or refused together."""
    left = number

    def killing(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*args: Any, **more: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            change(*args, **more)

        return changed

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, killing(getattr(os, name)))
        try:
            assert append(folder) == 0
        except Killed:
            pass
    assert (left < 0) == (number < 15)  # all of them are tried
    assert_old_or_new_or_refused(folder)
    assert append(folder) == 0
    assert_as_rebuilt(folder)
    assert not list(folder.glob("*.partial*")) and not list(folder.glob("*.appended*"))


def assert_old_or_new_or_refused(folder: Path) -> None:
    corpus, index = Corpus(folder / "c.jsonl"), folder / "flat.index"
    rows = faiss.read_index(str(index)).ntotal
    if len(corpus) == rows:
        check_belongs(index, read_note(index), corpus, "minilm")
    else:
        assert rows < len(corpus)
        try:
            check_belongs(index, read_note(index), corpus, "minilm")  # else it is refused by its rows
        except InputError as error:
            assert "interrupted build_index.py: run the same command again" in str(error)


def test_another_append_waits_for_the_one_that_was_killed_between_the_renames(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(appending, "write_note", kill)  # the corpus has its name, the index not yet
        with pytest.raises(Killed):
            append(folder)
    (folder / "third.jsonl").write_text(lines(["red red green"], first=20))
    assert append(folder, more="third.jsonl") == 1
    assert "finish an interrupted --append with its own file first" in capsys.readouterr().err
    assert append(folder) == 0
    assert_as_rebuilt(folder)
    assert append(folder, more="third.jsonl") == 0


APPEND = """
import sys, time, types
sys.path[:0] = [{root!r}, {tests!r}]
from local_dense_retriever import appending, build_index, embedding
embedding.CHUNK_ROWS, appending.COPY_ROWS = 4, 3
from retriever_fakes import ColourEncoder
class SlowEncoder(ColourEncoder):
    def __init__(self, *_, **__): pass
    def encode_passages(self, passages):
        time.sleep(0.02)
        return super().encode_passages(passages) + len(passages) / 1000
if {fake}:
    sys.modules["local_dense_retriever.encoder_choice"] = types.SimpleNamespace(load_encoder=SlowEncoder)
    sys.modules["local_dense_retriever.machine"] = types.SimpleNamespace(gpus=list)
sys.exit(build_index.main(sys.argv[1:]))
"""


def command(folder: Path, *flags: str, fake: bool, corpus: str = "c.jsonl", index: str = "flat.index") -> list[str]:
    tests = Path(__file__).parents[1]
    code = APPEND.format(root=str(tests.parent), tests=str(tests), fake=fake)
    paths = ["--corpus_path", str(folder / corpus), "--index_path", str(folder / index)]
    model = "fake" if fake else minilm_folder()
    return [sys.executable, "-c", code, *paths, "--retriever_name", "minilm", "--retriever_model", model, *flags]


def run(words: list[str], kill_after_s: float | None = None) -> float | None:
    """Seconds the command took; None if it was killed."""
    began = time.monotonic()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=one_thread) as process:
        try:
            _, errors = process.communicate(timeout=kill_after_s or 300)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return None
    assert process.returncode == 0, errors
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fake", "kills"),
    [pytest.param(True, 20, id="quick encoder"), pytest.param(False, 3, id="MiniLM", marks=pytest.mark.model)],
)
def test_an_append_killed_at_random_moments_ends_with_the_bytes_of_a_rebuild(
    tmp_path: Path, fake: bool, kills: int
) -> None:
    """After every kill the old corpus and index are usable, or the new ones, or they are refused together."""
    texts = [f"red {'green ' * (row % 17)}{'blue ' * (row % 11)}number {row}" for row in range(150)]
    (tmp_path / "c.jsonl").write_text(lines(texts[:70]))
    (tmp_path / "more.jsonl").write_text(lines(texts[70:], first=70))
    (tmp_path / "whole.jsonl").write_text(lines(texts))
    run(command(tmp_path, fake=fake))
    run(command(tmp_path, fake=fake, corpus="whole.jsonl", index="whole.index"))
    old = {name: (tmp_path / name).read_bytes() for name in ("c.jsonl", "flat.index", "flat.index.json")}
    words = command(tmp_path, "--append", str(tmp_path / "more.jsonl"), fake=fake)
    whole_s = run(words)
    assert whole_s is not None
    new = {name: (tmp_path / name).read_bytes() for name in old}
    moment, hits = random.Random(0), 0
    while hits < kills:
        if (tmp_path / "flat.index").read_bytes() == new["flat.index"]:  # it got to its end
            assert_as_rebuilt(tmp_path)
            for name, content in old.items():
                (tmp_path / name).write_bytes(content)
        if run(words, moment.uniform(0.2 * whole_s, 1.1 * whole_s)) is not None:
            continue
        hits += 1
        assert_old_or_new_or_refused(tmp_path)
    run(words)
    assert_as_rebuilt(tmp_path)
    assert not list(tmp_path.glob("*.partial*")) and not list(tmp_path.glob("*.appended*"))
