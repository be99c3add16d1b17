from pathlib import Path

import faiss
import numpy as np
import pytest
from retriever_fakes import ColourEncoder, write_corpus, write_flat_index

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.index import PassageIndex
from local_dense_retriever.retriever import Retriever


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    return write_flat_index(tmp_path / "flat.index", np.array([[1, 0], [0.6, 0.8]], dtype=np.float32))


def test_search_returns_the_nearest_rows_best_first(index_path: Path) -> None:
    found = PassageIndex(index_path).search(np.array([[1, 0], [0, 1]], dtype=np.float32), k=2)
    assert found.rows.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(found.scores, [[1, 0.6], [0.8, 0]], rtol=1e-6)
    assert (str(found.rows.dtype), str(found.scores.dtype)) == ("int64", "float32")


def test_an_index_of_two_vectors_asked_for_three_says_that_there_is_no_third(index_path: Path) -> None:
    found = PassageIndex(index_path).search(np.array([[1, 0]], dtype=np.float32), k=3)
    assert found.rows.tolist() == [[0, 1, -1]]


def test_row_minus_one_is_no_passage_and_never_the_last_one(tmp_path: Path) -> None:
    texts = ["red", "green"]
    index = write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(texts))
    corpus = Corpus(write_corpus(tmp_path / "c.jsonl", texts))
    retriever = Retriever(ColourEncoder(), PassageIndex(index), corpus)
    hits = retriever.search(["green", "red"], topk=5)
    assert [[hit.passage.id for hit in found] for found in hits] == [["p1", "p0"], ["p0", "p1"]]


@pytest.mark.parametrize("kept_bytes", [0, 3, 20, -5])
def test_a_file_cut_short_is_one_sentence(index_path: Path, kept_bytes: int) -> None:
    index_path.write_bytes(index_path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match="is cut short or is not a FAISS index") as caught:
        PassageIndex(index_path)
    assert "\n" not in str(caught.value)


def test_faiss_gpu_without_gpu_support_names_the_package_to_install(
    index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(InputError, match="install faiss-gpu-cu12 in place of faiss-cpu"):
        PassageIndex(index_path, use_gpu=True)


def test_faiss_gpu_without_a_visible_gpu_says_where_to_look(index_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        PassageIndex(index_path, use_gpu=True)


def test_faiss_gpu_splits_the_index_in_fp16(index_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Options:
        useFloat16 = shard = False

    given: list[Options] = []

    def to_all_gpus(index: faiss.Index, co: Options) -> faiss.Index:
        given.append(co)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", Options, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_all_gpus, raising=False)
    assert len(PassageIndex(index_path, use_gpu=True)) == 2
    assert [(options.useFloat16, options.shard) for options in given] == [(True, True)]
