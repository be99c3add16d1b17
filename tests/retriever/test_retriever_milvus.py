"""Milvus behind the retriever: milvus-lite's file, and its server at a URL, through the calls that a cluster gets."""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from retriever_fakes import ColourEncoder, client_of, write_corpus, write_flat_index

from local_dense_retriever import build_index, embedding, encoder_choice, milvus_index, verify
from local_dense_retriever.errors import InputError
from local_dense_retriever.exact_index import ExactIndex
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.milvus_index import MilvusIndex, connect
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import About, UnavailableError

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install -e '.[milvus]'")
server_manager = pytest.importorskip("milvus_lite.server_manager", reason="milvus-lite is not installed")

# 60 texts whose mixtures of colours are all different
TEXTS = [f"{'red ' * (row % 7)}{'green ' * (row % 5)}{'blue ' * (1 + row)}" for row in range(60)]


class StoppedEncoder(ColourEncoder):
    """Is interrupted after `stop_after` chunks, as by Ctrl-C."""

    stop_after = 1000
    calls = 0

    def __init__(self, name: str, model: str, batch_size: int | None = None) -> None:
        pass

    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]:
        if StoppedEncoder.calls == StoppedEncoder.stop_after:
            raise KeyboardInterrupt
        StoppedEncoder.calls += 1
        return super().encode_passages(passages)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(embedding, "CHUNK_ROWS", 8)
    monkeypatch.setattr(encoder_choice, "load_encoder", StoppedEncoder)
    monkeypatch.setattr(StoppedEncoder, "calls", 0)
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    write_corpus(tmp_path / "c.jsonl", TEXTS)
    write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(TEXTS))
    yield tmp_path
    for path in tmp_path.glob("*.db"):
        release(path)


def release(path: Path) -> None:
    """Closes milvus-lite's file, as the end of its process does."""
    server_manager.server_manager_instance.release_server(str(path))


def fill(folder: Path, *flags: str, uri: str | None = None, source: str = "--corpus_path") -> int:
    path = {"--corpus_path": "c.jsonl", "--from_index": "flat.index"}[source]
    command = [source, str(folder / path), "--milvus_uri", uri or str(folder / "m.db")]
    return build_index.main([*command, "--retriever_name", "minilm", "--retriever_model", "fake", *flags])


def load(folder: Path, *flags: str, uri: str | None = None) -> Retriever:
    parser = argparse.ArgumentParser()
    add_index_arguments(parser)
    paths = ["--milvus_uri", uri or str(folder / "m.db"), "--corpus_path", str(folder / "c.jsonl")]
    args = parser.parse_args([*paths, "--retriever_name", "minilm", "--retriever_model", "fake", *flags])
    return load_retriever(args, lambda what: None)


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return error


def stored(folder: Path) -> NDArray[np.float32]:
    return MilvusIndex(str(folder / "m.db"), "passages").vectors(range(len(TEXTS)))


# ---- Searching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index_type", "flags"), [("Flat", {}), ("IVF_FLAT,nlist=8", {"nprobe": 128}), ("HNSW,M=16,efConstruction=99", {})]
)
def test_milvus_finds_what_exact_search_finds(folder: Path, index_type: str, flags: dict[str, int]) -> None:
    """nprobe is 128 because milvus-lite makes 128 lists, whatever nlist says."""
    vectors = np.random.default_rng(0).standard_normal((2050, 24), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_flat_index(folder / "flat.index", vectors[:2000])
    assert fill(folder, "--index_type", index_type, source="--from_index") == 0
    index = MilvusIndex(str(folder / "m.db"), "passages", **flags)
    found, truth = index.search(vectors[2000:], 10), ExactIndex(folder / "flat.index").search(vectors[2000:], 10)
    assert (found.rows == truth.rows).mean() > 0.9
    if index_type != "HNSW,M=16,efConstruction=99":
        assert np.array_equal(found.rows, truth.rows)
        np.testing.assert_allclose(found.scores, truth.scores, atol=1e-5)
    assert (str(found.rows.dtype), str(found.scores.dtype)) == ("int64", "float32")
    path = f"{folder / 'm.db'} (passages)"
    assert index.about == About(path, f"milvus {index_type}", rows=2000, dimension=24, bytes=2000 * 24 * 4)


def test_a_collection_of_sixty_rows_asked_for_more_says_that_there_are_none(folder: Path) -> None:
    assert fill(folder) == 0
    found = MilvusIndex(str(folder / "m.db"), "passages").search(np.eye(3, dtype=np.float32), 70)
    assert found.rows.shape == (3, 70) and (found.rows[:, 60:] == -1).all() and (found.rows[:, :60] >= 0).all()


def test_a_query_that_the_encoder_makes_nan_of_finds_nothing_and_its_batch_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster refuses a batch with such a vector; milvus-lite does not, so that is put before it."""
    search = pymilvus.MilvusClient.search

    def strict_search(client: object, name: str, data: NDArray[np.float32], **settings: object) -> object:
        if not np.isfinite(data).all():
            raise pymilvus.MilvusException(message="value 'NaN' is not a number or infinity")
        return search(client, name, data=data, **settings)

    assert fill(folder) == 0
    monkeypatch.setattr(pymilvus.MilvusClient, "search", strict_search)
    index = MilvusIndex(str(folder / "m.db"), "passages")
    queries = np.array([[1, 0, 0], [np.nan, 0, 0], [0, 0, 1]], np.float32)
    rows = index.search(queries, 2).rows
    assert rows[1].tolist() == [-1, -1] and np.array_equal(rows[[0, 2]], index.search(queries[[0, 2]], 2).rows)
    assert index.search(queries[1:2], 2).rows.tolist() == [[-1, -1]]


def test_rows_of_equal_score_come_in_the_order_of_the_corpus(folder: Path) -> None:
    write_flat_index(folder / "flat.index", np.tile(np.eye(3, dtype=np.float32)[:1], (20, 1)))
    assert fill(folder, source="--from_index") == 0
    rows = MilvusIndex(str(folder / "m.db"), "passages").search(np.eye(3, dtype=np.float32)[:1], 20).rows
    assert rows.tolist() == [list(range(20))]


def test_the_retriever_answers_with_the_texts_of_the_corpus_file(folder: Path) -> None:
    assert fill(folder) == 0
    retriever = load(folder)
    assert retriever.describe()["encoder"] == "colours"
    for row in (0, 30, 59):
        [[best]] = retriever.search([TEXTS[row]], topk=1)
        assert best.passage == (f"p{row}", TEXTS[row])


def test_milvus_and_words_are_fused(folder: Path) -> None:
    assert fill(folder) == 0
    words = ["--corpus_path", str(folder / "c.jsonl"), "--index_path", str(folder / "words"), "--index_type", "BM25"]
    assert build_index.main(words) == 0
    retriever = load(folder, "--bm25_path", str(folder / "words"))
    assert retriever.describe()["backend"] == "hybrid of milvus Flat and bm25"
    assert len(retriever.search(["red"], topk=3)[0]) == 3


# ---- Filling ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_filling_continues_where_it_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StoppedEncoder, "stop_after", 3)
    assert fill(folder) == 130
    monkeypatch.setattr(StoppedEncoder, "stop_after", 1000)
    StoppedEncoder.calls = 0
    with pytest.raises(InputError, match=r"has 24 rows but the corpus .* has 60 passages"):
        load(folder)
    assert fill(folder) == 0
    assert "24 of 60 passages are done" in capsys.readouterr().out
    assert StoppedEncoder.calls == 5  # of 8 chunks
    np.testing.assert_allclose(stored(folder), ColourEncoder().encode_passages(TEXTS), rtol=1e-6)


def test_a_chunk_that_arrived_in_part_is_written_again_and_is_there_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pymilvus.MilvusClient, "insert", None)  # in a cluster it keeps both; milvus-lite's does not
    assert fill(folder) == 0
    connect(str(folder / "m.db")).delete("passages", filter="row >= 21")
    assert fill(folder) == 0
    assert MilvusIndex(str(folder / "m.db"), "passages").about.rows == 60
    np.testing.assert_allclose(stored(folder), ColourEncoder().encode_passages(TEXTS), rtol=1e-6)


def test_filling_what_is_full_encodes_nothing(folder: Path) -> None:
    assert fill(folder) == 0
    StoppedEncoder.calls = 0
    assert fill(folder) == 0 and StoppedEncoder.calls == 0


def test_a_hole_in_the_collection_is_filled(folder: Path) -> None:
    assert fill(folder) == 0
    connect(str(folder / "m.db")).delete("passages", filter="row == 13")
    with pytest.raises(InputError, match="has 59 rows but the corpus"):
        load(folder)
    StoppedEncoder.calls = 0
    assert fill(folder) == 0 and StoppedEncoder.calls == 7  # all but the first chunk of 8 rows
    np.testing.assert_allclose(stored(folder), ColourEncoder().encode_passages(TEXTS), rtol=1e-6)


def test_a_full_collection_is_made_again_only_when_asked_and_then_continued_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fill(folder) == 0
    StoppedEncoder.calls = 0
    monkeypatch.setattr(StoppedEncoder, "stop_after", 3)
    assert fill(folder, "--overwrite") == 130
    monkeypatch.setattr(StoppedEncoder, "stop_after", 1000)
    assert fill(folder, "--overwrite") == 0 and StoppedEncoder.calls == 8


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("corpus", "was made with another corpus digest and rows"),
        ("model", "was made with another retriever model"),
        ("name", "was made with another retriever name"),
        ("dimension", "was made with another dim"),
        ("type", "was made with another index type"),
    ],
)
def test_a_collection_made_from_something_else_is_refused_and_replaced_only_when_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str, complaint: str
) -> None:
    assert fill(folder) == 0
    flags = {
        "model": ["--retriever_model", "other"],
        "name": ["--retriever_name", "e5"],
        "type": ["--index_type", "HNSW"],
    }.get(change, [])
    if change == "corpus":
        write_corpus(folder / "c.jsonl", TEXTS[:-1])
    if change == "dimension":
        monkeypatch.setattr(StoppedEncoder, "dim", 4)
    assert fill(folder, *flags) == 1
    error = one_sentence(capsys)
    assert complaint in error and "--overwrite" in error
    assert MilvusIndex(str(folder / "m.db"), "passages").about.rows == 60
    if change != "dimension":
        assert fill(folder, *flags, "--overwrite") == 0


def test_a_collection_that_we_did_not_make_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect(str(folder / "m.db"))
    client.create_collection("passages", dimension=5)
    for flags in ([], ["--overwrite"]):
        assert fill(folder, *flags) == 1
        assert "was not made by build_index.py: give another --milvus_collection" in one_sentence(capsys)
    with pytest.raises(InputError, match=r"was not made by build_index\.py"):
        load(folder)
    assert fill(folder, "--milvus_collection", "other") == 0 and sorted(client.list_collections()) == [
        "other",
        "passages",
    ]


def test_appending_to_a_collection_is_reported_in_one_sentence_that_says_how_to_get_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = write_corpus(folder / "more.jsonl", ["violet"])
    assert fill(folder, "--append", str(more)) == 1
    assert "append there, then give it here as --from_index, with --overwrite" in one_sentence(capsys)


@pytest.mark.parametrize("index_type", ["IVF4096,SQ8", "HNSW,M", "HNSW,M=1=2", "BM25"])
def test_a_type_that_milvus_does_not_have_is_reported_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], index_type: str
) -> None:
    assert fill(folder, "--index_type", index_type) == 1
    assert "is not a Milvus index: write its name and settings, such as FLAT" in one_sentence(capsys)


def test_a_passage_that_the_encoder_makes_nan_of_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: ColourEncoder, passages: Sequence[str]) -> NDArray[np.float32]:
        vectors = ColourEncoder().encode_passages(passages)
        vectors[[text == TEXTS[21] for text in passages]] = np.nan
        return vectors

    monkeypatch.setattr(StoppedEncoder, "encode_passages", broken)
    assert fill(folder) == 1
    assert "the encoder returns NaN for passage number 22 of the corpus" in one_sentence(capsys)


@pytest.mark.slow
def test_a_filling_killed_at_random_moments_ends_with_every_row_once(folder: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((60_000, 8), dtype=np.float32)
    write_flat_index(folder / "flat.index", vectors)
    command = [sys.executable, "-m", "local_dense_retriever.build_index", "--from_index", str(folder / "flat.index")]
    command += ["--milvus_uri", str(folder / "m.db")]
    moment, kills = random.Random(0), 0
    for _ in range(10):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            progress = process.stderr.read(1)  # the bar of the progress: it is writing
            try:
                process.wait(moment.uniform(0.02, 0.2))  # all of it takes about a second
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if not progress:  # the runs before have written everything
            break
    assert kills > 1
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    index = MilvusIndex(str(folder / "m.db"), "passages")
    assert index.about.rows == 60_000
    for start in range(0, 60_000, 10_000):
        rows = range(start, start + 10_000)
        assert np.array_equal(index.vectors(rows), vectors[rows.start : rows.stop])


# ---- What cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "uri", "complaint"),
    [
        ([], "none.db", "there is no file .*none.db: fill it"),
        ([], "http://127.0.0.1:9", r"Milvus at http://127\.0\.0\.1:9 fails .*check that it runs"),
        ([], "http://me:secret@127.0.0.1:9", "holds a password.* put user:password into MILVUS_TOKEN"),
        (["--milvus_collection", "none"], None, "there is no collection .*none.*correct --milvus_collection"),
        (["--retriever_name", "e5"], None, "was built with --retriever_name minilm and this is e5"),
        (["--index_backend", "exact"], None, "--milvus_uri is for Milvus, and --index_backend is exact"),
        (["--index_path", "flat.index"], None, "either --index_path .* or --milvus_uri"),
        (["--faiss_gpu"], None, "--faiss_gpu is for FAISS: leave it out"),
        (["--rescore_path", "flat.index"], None, "--rescore_path is for FAISS: leave it out"),
    ],
)
def test_inconsistent_flags_are_reported_in_one_sentence_without_secrets(
    folder: Path, flags: list[str], uri: str | None, complaint: str
) -> None:
    assert fill(folder) == 0
    uri = str(folder / uri) if uri and uri.endswith(".db") else uri
    with pytest.raises(InputError, match=complaint) as caught:
        load(folder, *flags, uri=uri)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert not (folder / "none.db").exists()


def test_a_corpus_changed_under_the_collection_is_noticed_though_it_is_as_long(folder: Path) -> None:
    assert fill(folder) == 0
    write_corpus(folder / "c.jsonl", [text + "stone" for text in TEXTS])
    with pytest.raises(InputError, match="was built from 60 passages of another text than the 60 in"):
        load(folder)


def test_a_file_that_another_process_holds_is_reported_in_one_sentence(folder: Path) -> None:
    assert fill(folder) == 0
    command = [sys.executable, "-m", "local_dense_retriever.verify", "--milvus_uri", str(folder / "m.db")]
    other = subprocess.run(
        [*command, "--corpus_path", str(folder / "c.jsonl")], capture_output=True, text=True, timeout=120
    )
    assert other.returncode == 1 and "one process at a time may open such a file" in other.stderr
    assert "Traceback" not in other.stderr


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr("pymilvus.MilvusClient", lambda **settings: given.update(settings))
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret\n")
    connect("http://milvus:19530")
    assert given["token"] == "me:secret"
    monkeypatch.setenv("MILVUS_TOKEN", "sec\rret")
    with pytest.raises(InputError, match="MILVUS_TOKEN has an invalid character") as caught:
        connect("http://milvus:19530")
    assert "sec" not in str(caught.value)


def test_without_the_package_one_sentence_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match="needs the package pymilvus: pip install pymilvus"):
        load(folder, uri="http://milvus:19530")


# ---- verify.py -------------------------------------------------------------------------------------------------------


def check(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    capsys.readouterr()
    paths = ["--milvus_uri", str(folder / "m.db"), "--corpus_path", str(folder / "c.jsonl")]
    code = verify.main([*paths, "--retriever_name", "minilm", "--retriever_model", "fake", *flags])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_verify_compares_the_collection_with_exact_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fill(folder) == 0
    code, output = check(folder, capsys, "--flat_index", str(folder / "flat.index"))
    assert code == 0 and output.count("ok  ") == 5 and "recall@3 1.000 over 60 queries" in output
    assert "recall is not measured: give --flat_index" in check(folder, capsys)[1]


def test_verify_finds_shifted_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_flat_index(folder / "flat.index", np.roll(ColourEncoder().encode_passages(TEXTS), 1, axis=0))
    assert fill(folder, source="--from_index") == 0
    code, output = check(folder, capsys)
    assert code == 1 and "FAIL stored vectors match their passages" in output


def test_verify_of_a_milvus_that_goes_away_is_reported_in_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object) -> None:
        raise UnavailableError("Milvus is down or slow")

    assert fill(folder) == 0
    monkeypatch.setattr(MilvusIndex, "search", gone)
    code, output = check(folder, capsys)
    assert code == 1 and output.endswith("error: Milvus is down or slow\n")


# ---- A server at a URL -----------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[bytes], str]]]:
    """Starts milvus-lite's server, the next time at the same port and with the same data."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[subprocess.Popen[bytes]] = []

    def start_server() -> tuple[subprocess.Popen[bytes], str]:
        where = ["--data-dir", str(tmp_path / "served"), "--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-m", "milvus_lite", "server", *where]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        wait_until_listening(process, port)
        return process, f"http://127.0.0.1:{port}"

    yield start_server
    for process in started:
        process.kill()
        process.wait()


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def test_while_milvus_is_down_or_silent_requests_get_503_and_afterwards_answers(
    folder: Path, start: Callable[[], tuple[subprocess.Popen[bytes], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_index, "SEARCH_TIMEOUT_S", 1.0)
    process, uri = start()
    assert fill(folder, uri=uri) == 0
    retriever = load(folder, uri=uri)

    async with client_of(retriever) as client:

        async def ask(query: str) -> tuple[int, float]:
            began = time.monotonic()
            response = await client.post("/retrieve", json={"queries": [query, f"{query} {query}"], "topk": 1})
            if response.status_code == 503:
                assert response.headers["Retry-After"] and "the index does not answer" in response.json()["detail"]
            return response.status_code, time.monotonic() - began

        assert (await ask("red"))[0] == 200
        with stopped(process):
            status, seconds = await ask("green")
            assert status == 503 and seconds < 5  # once the timeout, whatever the number of queries
        process.kill()
        process.wait()
        status, seconds = await ask("blue")
        assert status == 503 and seconds < 5
        assert (await ask("red"))[0] == 200  # from the cache
        start()
        deadline = time.monotonic() + 60
        while (await ask("blue"))[0] != 200:
            assert time.monotonic() < deadline
