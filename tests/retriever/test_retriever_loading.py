"""From flags to a retriever: which backend is taken, and what is refused."""

import argparse
import json
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from retriever_fakes import ColourEncoder, write_corpus, write_flat_index

from local_dense_retriever import build_index, encoder_choice, loading, machine
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.notes import IndexNote, note_path, write_note
from local_dense_retriever.retriever import Retriever

TEXTS = ["red stone", "green stone", "blue stone", "red red blue"]


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_choice, "load_encoder", lambda name, model: ColourEncoder())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus with a flat, an IVF and a BM25 index, on a machine with bfloat16 instructions."""
    monkeypatch.setattr(loading, "fast_in_half_precision", lambda: True)
    without_gpu(monkeypatch)
    corpus = write_corpus(tmp_path / "c.jsonl", TEXTS)
    vectors = ColourEncoder().encode_passages(TEXTS)
    write_flat_index(tmp_path / "flat.index", vectors)
    ivf = faiss.index_factory(3, "IVF1,Flat", faiss.METRIC_INNER_PRODUCT)
    ivf.train(vectors)
    ivf.add(vectors)
    faiss.write_index(ivf, str(tmp_path / "ivf.index"))
    words = ["--corpus_path", str(corpus), "--index_path", str(tmp_path / "words"), "--index_type", "BM25"]
    assert build_index.main(words) == 0
    return tmp_path


def load(folder: Path, *flags: str, index: str = "flat.index") -> tuple[Retriever, list[str]]:
    parser = argparse.ArgumentParser()
    add_index_arguments(parser)
    paths = ["--index_path", str(folder / index), "--corpus_path", str(folder / "c.jsonl")]
    reports: list[str] = []
    flags = tuple(str(folder / flag) if flag in ("words", "flat.index", "ivf.index") else flag for flag in flags)
    args = parser.parse_args([*paths, "--retriever_name", "minilm", "--retriever_model", "fake", *flags])
    return load_retriever(args, reports.append), reports


@pytest.mark.parametrize(
    ("index", "flags", "backend"),
    [
        ("flat.index", (), "exact cpu bfloat16"),
        ("flat.index", ("--in_memory",), "faiss IndexFlatIP"),
        ("flat.index", ("--index_backend", "faiss"), "faiss IndexFlatIP"),
        ("ivf.index", (), "faiss IndexIVFFlat"),
        ("ivf.index", ("--nprobe", "1"), "faiss IndexIVFFlat"),
        ("ivf.index", ("--rescore_path", "flat.index"), "faiss IndexIVFFlat, rescored"),
        ("words", (), "bm25"),
        ("flat.index", ("--bm25_path", "words"), "hybrid of exact cpu bfloat16 and bm25"),
        ("ivf.index", ("--index_backend", "hybrid", "--bm25_path", "words"), "hybrid of faiss IndexIVFFlat and bm25"),
    ],
)
def test_the_backend_follows_from_the_files_and_flags(
    folder: Path, index: str, flags: tuple[str, ...], backend: str
) -> None:
    retriever, _ = load(folder, *flags, index=index)
    assert retriever.describe()["backend"] == backend
    [[best]] = retriever.search(["red red blue"], topk=1)
    assert best.passage == ("p3", "red red blue")


def test_a_cpu_without_bfloat16_searches_a_flat_file_by_faiss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    without_gpu(monkeypatch)
    cpu_info = folder / "cpuinfo"
    monkeypatch.setattr(machine, "CPU_INFO", cpu_info)
    for flags, backend in (("fpu avx2", "faiss IndexFlatIP"), ("fpu avx512_bf16", "exact cpu bfloat16")):
        cpu_info.write_text(f"model name : some\nflags : {flags}\n")
        assert load(folder)[0].describe()["backend"] == backend


def test_each_part_is_reported_before_it_is_loaded(folder: Path) -> None:
    _, reports = load(folder, "--bm25_path", "words")
    names = [report.removeprefix("the ").split()[0] for report in reports]
    assert names == ["corpus", "index", "encoder", "index"]


@pytest.mark.parametrize(
    ("index", "flags", "complaint"),
    [
        ("flat.index", ("--index_backend", "hybrid"), "hybrid search needs --bm25_path too"),
        ("flat.index", ("--index_backend", "exact", "--nprobe", "4"), "--nprobe is for FAISS: leave it out"),
        ("ivf.index", ("--index_backend", "exact"), "is not a flat inner-product index"),
        ("flat.index", ("--index_backend", "bm25"), "is not the folder of a BM25 index"),
        ("words", ("--bm25_path", "words"), "--bm25_path is for hybrid search, and --index_backend is bm25"),
        ("flat.index", ("--nprobe", "4"), "--nprobe is for IVF indexes"),
        ("missing.index", (), "there is no file"),
        ("ivf.index", ("--rescore_path", "ivf.index"), "is not a flat inner-product index"),
        ("ivf.index", ("--rescore_path", "none"), "there is no index file none: check --rescore_path"),
    ],
)
def test_flags_and_files_that_contradict_each_other_are_reported_in_one_sentence(
    folder: Path, index: str, flags: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        load(folder, *flags, index=index)
    assert "\n" not in str(caught.value)


def test_a_corpus_changed_under_its_index_is_noticed_though_it_is_as_long(folder: Path) -> None:
    digest = Corpus(folder / "c.jsonl").digest
    write_note(folder / "flat.index", IndexNote(digest, 4, 3, "minilm", "fake", "Flat"))
    load(folder)
    write_corpus(folder / "c.jsonl", [text.replace("stone", "apple") for text in TEXTS])
    with pytest.raises(InputError, match=r"was built from 4 passages of another text than the 4 in .*c\.jsonl"):
        load(folder)


@pytest.mark.parametrize(
    ("flag", "name", "index"), [("--bm25_path", "words", "flat.index"), ("--rescore_path", "flat.index", "ivf.index")]
)
def test_a_second_index_of_another_corpus_is_refused_too(folder: Path, flag: str, name: str, index: str) -> None:
    digest = Corpus(folder / "c.jsonl").digest
    write_note(folder / name, IndexNote(digest, 4, 3, "minilm", "fake", "Flat"))
    load(folder, flag, name, index=index)
    write_note(folder / name, IndexNote(digest[::-1], 4, 3, "minilm", "fake", "Flat"))
    with pytest.raises(InputError, match=rf"the index .*{name} was built from 4 passages of another text"):
        load(folder, flag, name, index=index)


def test_an_index_of_another_family_of_encoders_is_refused(folder: Path) -> None:
    write_note(folder / "flat.index", IndexNote(Corpus(folder / "c.jsonl").digest, 4, 3, "e5", "fake", "Flat"))
    with pytest.raises(InputError, match="was built with --retriever_name e5 and this is minilm"):
        load(folder)


def test_a_damaged_note_is_reported_in_one_sentence(folder: Path) -> None:
    note_path(folder / "flat.index").write_text(json.dumps({"rows": 4}))
    with pytest.raises(InputError, match="remove it, or build the index again"):
        load(folder)


def test_an_index_of_another_number_of_rows_is_refused(folder: Path) -> None:
    write_flat_index(folder / "flat.index", np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match=r"has 3 rows but the corpus .* has 4 passages"):
        load(folder)
