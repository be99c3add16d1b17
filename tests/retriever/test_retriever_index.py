"""Indexes of vectors, over real files: FAISS's, and exact search by torch."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from retriever_fakes import write_flat_index

from local_dense_retriever import exact_index, machine
from local_dense_retriever.errors import InputError
from local_dense_retriever.exact_index import ExactIndex
from local_dense_retriever.faiss_index import FaissIndex, RescoredIndex
from local_dense_retriever.flat_file import read_flat_header, write_flat_header
from local_dense_retriever.searcher import VectorIndex

BOTH = pytest.mark.parametrize("kind", [FaissIndex, ExactIndex])


def unit_vectors(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_index(path: Path, vectors: NDArray[np.float32], index_type: str) -> Path:
    index = faiss.index_factory(vectors.shape[1], index_type, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(path))
    return path


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    return write_flat_index(tmp_path / "flat.index", np.array([[1, 0], [0.6, 0.8]], dtype=np.float32))


# ---- Both ------------------------------------------------------------------------------------------------------------


@BOTH
def test_search_returns_the_nearest_rows_best_first(index_path: Path, kind: type[VectorIndex]) -> None:
    found = kind(index_path).search(np.array([[1, 0], [0, 1]], dtype=np.float32), k=2)  # type: ignore[call-arg]
    assert found.rows.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(found.scores, [[1, 0.6], [0.8, 0]], rtol=1e-6)
    assert (str(found.rows.dtype), str(found.scores.dtype)) == ("int64", "float32")


@BOTH
def test_an_index_of_two_vectors_asked_for_three_says_that_there_is_no_third(
    index_path: Path, kind: type[VectorIndex]
) -> None:
    found = kind(index_path).search(np.array([[1, 0]], dtype=np.float32), k=3)  # type: ignore[call-arg]
    assert found.rows.tolist() == [[0, 1, -1]]


@BOTH
@pytest.mark.parametrize("kept_bytes", [4, 20, -5])
def test_a_flat_file_cut_short_is_reported_in_one_sentence(
    index_path: Path, kind: type[VectorIndex], kept_bytes: int
) -> None:
    index_path.write_bytes(index_path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match="is cut short or damaged") as caught:
        kind(index_path)  # type: ignore[call-arg]
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_reported_with_both_sizes(index_path: Path) -> None:
    index_path.write_bytes(index_path.read_bytes()[:-5])
    # 45 bytes of header, 2 vectors of 2 numbers of 4 bytes
    with pytest.raises(InputError, match="means 2 vectors of dimension 2, 61 bytes, but it has 56"):
        read_flat_header(index_path)


@BOTH
def test_an_index_in_a_folder_of_its_own_name_is_opened(index_path: Path, kind: type[VectorIndex]) -> None:
    folder = index_path.parent / "e5_Flat.index"
    folder.mkdir()
    index_path.rename(folder / "e5_Flat.index")
    assert kind(folder).about.rows == 2  # type: ignore[call-arg]
    (folder / "e5_Flat.index").rename(folder / "e5_Flat.index.partial")
    with pytest.raises(InputError, match=r"the download of .* is not complete: run download\.py again"):
        kind(folder)  # type: ignore[call-arg]


# ---- The flat file ---------------------------------------------------------------------------------------------------


def test_a_flat_file_written_here_is_the_one_that_faiss_writes(tmp_path: Path) -> None:
    vectors = unit_vectors(7, 5)
    theirs = write_flat_index(tmp_path / "theirs.index", vectors)
    with (tmp_path / "ours.index").open("wb") as file:
        write_flat_header(file, rows=7, dim=5)
        file.write(vectors.tobytes())
    assert (tmp_path / "ours.index").read_bytes() == theirs.read_bytes()
    flat = read_flat_header(theirs)
    assert flat is not None and np.array_equal(flat.vectors(), vectors)
    assert np.array_equal(flat.read(2, 5), vectors[2:5])


# ---- Exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1 << 12, 1 << 28])
def test_exact_search_finds_what_float32_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(exact_index, "BLOCK_BYTES", block_bytes)  # many blocks, or one
    vectors, queries = unit_vectors(3000, 24), unit_vectors(50, 24, seed=1)
    found = ExactIndex(write_flat_index(tmp_path / "flat.index", vectors)).search(queries, k=10)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert np.array_equal(found.rows, expected)
    np.testing.assert_allclose(found.scores, np.take_along_axis(queries @ vectors.T, expected, axis=1), atol=1e-6)


def test_rows_closer_than_half_precision_resolves_are_ranked_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 500 scores within 0.0005 of each other, where bfloat16 knows only a few values. The mean is kept from helping.
    monkeypatch.setattr(exact_index, "_mean", lambda file: np.zeros(file.dim, np.float32))
    angles = np.random.default_rng(0).permutation(500).astype(np.float32) * 1e-6 + 0.7
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    index = ExactIndex(write_flat_index(tmp_path / "flat.index", vectors))
    assert index.search(np.array([[1, 0]], np.float32), k=3).rows.tolist() == [np.argsort(angles)[:3].tolist()]


def test_exact_search_over_several_devices_counts_rows_through(tmp_path: Path) -> None:
    vectors = unit_vectors(1001, 8)
    path = write_flat_index(tmp_path / "flat.index", vectors)
    split = ExactIndex(path, devices=["cpu"] * 3)
    assert np.array_equal(split.search(vectors[::100], k=4).rows, ExactIndex(path).search(vectors[::100], k=4).rows)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_row_with_nan_is_never_found_and_does_not_make_every_search_scan_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: float
) -> None:
    vectors = unit_vectors(3000, 24)
    vectors[0, 3] = number  # row 0 is also one of those that the mean is taken of
    index = ExactIndex(write_flat_index(tmp_path / "flat.index", vectors))
    assert "1 rows of" in capsys.readouterr().out
    counts: list[int] = []
    real = exact_index.coarse_search
    monkeypatch.setattr(
        exact_index, "coarse_search", lambda parts, queries, count: counts.append(count) or real(parts, queries, count)
    )
    queries = unit_vectors(50, 24, seed=1)
    expected = 1 + np.argsort(-(queries @ vectors[1:].T), axis=1)[:, :10]
    assert np.array_equal(index.search(queries, k=10).rows, expected)
    assert max(counts) < 3000
    assert sorted(index.search(queries[:1], k=3000).rows[0])[:2] == [-1, 1]


def test_a_query_of_nan_finds_nothing_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ExactIndex(write_flat_index(tmp_path / "flat.index", unit_vectors(3000, 24)))
    counts: list[int] = []
    real = exact_index.coarse_search
    monkeypatch.setattr(
        exact_index, "coarse_search", lambda parts, queries, count: counts.append(count) or real(parts, queries, count)
    )
    assert index.search(np.full((1, 24), np.nan, np.float32), k=3).rows.tolist() == [[-1, -1, -1]]
    assert len(counts) == 1


def test_equal_vectors_are_found_in_the_order_of_their_rows(tmp_path: Path) -> None:
    vectors = np.tile(unit_vectors(5, 8), (6, 1))  # 30 rows, each vector six times
    index = ExactIndex(write_flat_index(tmp_path / "flat.index", vectors))
    for k in (1, 3, 6, 10):
        assert index.search(vectors[2:3], k).rows[0, :6].tolist() == [2, 7, 12, 17, 22, 27][:k]


def test_exact_search_needs_a_flat_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a flat inner-product index"):
        ExactIndex(write_index(tmp_path / "sq8.index", unit_vectors(50, 8), "SQ8"))


def test_too_little_memory_is_reported_with_both_amounts(index_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 100_000_000)
    with pytest.raises(
        InputError, match=r"needs 0\.0 GB of memory, but only 0\.1 GB are free: give --index_backend faiss"
    ):
        ExactIndex(index_path)
    with pytest.raises(InputError, match="leave out --in_memory"):
        FaissIndex(index_path, in_memory=True)
    assert FaissIndex(index_path).about.rows == 2  # mapped: needs none


# ---- Rescored --------------------------------------------------------------------------------------------------------


def test_a_coarse_index_rescored_finds_nearly_what_exact_search_finds(tmp_path: Path) -> None:
    vectors, queries = unit_vectors(2000, 32), unit_vectors(50, 32, seed=1)
    flat = read_flat_header(write_flat_index(tmp_path / "flat.index", vectors))
    assert flat is not None
    coarse = FaissIndex(write_index(tmp_path / "coarse.index", vectors, "RaBitQ"))
    truth = ExactIndex(flat.path).search(queries, k=5)
    found = RescoredIndex(coarse, flat).search(queries, k=5)

    def recall(rows: NDArray[np.int64]) -> float:
        return float(np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows, truth.rows, strict=True)]))

    assert recall(found.rows) > 0.9 > recall(coarse.search(queries, k=5).rows) + 0.1
    same = found.rows == truth.rows
    np.testing.assert_allclose(found.scores[same], truth.scores[same], atol=1e-6)


def test_a_rescored_index_of_two_vectors_has_no_third(index_path: Path) -> None:
    flat = read_flat_header(index_path)
    assert flat is not None
    found = RescoredIndex(FaissIndex(index_path), flat).search(np.array([[0, 1]], dtype=np.float32), k=3)
    assert found.rows.tolist() == [[1, 0, -1]]


def test_a_flat_file_of_another_index_is_refused(tmp_path: Path, index_path: Path) -> None:
    other = read_flat_header(write_flat_index(tmp_path / "other.index", unit_vectors(3, 2)))
    assert other is not None
    with pytest.raises(InputError, match=r"has 2 rows of 2 numbers and .* 3 of 2: give the flat index"):
        RescoredIndex(FaissIndex(index_path), other)


# ---- FAISS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index_type", ["SQ8", "SQ4", "HNSW8", "IVF4,Flat", "IVF4,SQ8", "PQ4x4"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_any_faiss_file_is_searched_mapped_or_in_memory(tmp_path: Path, index_type: str, in_memory: bool) -> None:
    vectors = unit_vectors(300, 8)
    index = FaissIndex(write_index(tmp_path / "some.index", vectors, index_type), in_memory=in_memory)
    assert (index.about.rows, index.about.dimension) == (300, 8)
    own = index.search(vectors[:20], k=5).rows == np.arange(20)[:, None]
    assert own.any(axis=1).mean() >= 0.8


def test_nprobe_searches_more_lists(tmp_path: Path) -> None:
    path = write_index(tmp_path / "ivf.index", unit_vectors(400, 8), "IVF16,Flat")
    queries, truth = unit_vectors(30, 8, seed=1), ExactIndex(write_flat_index(tmp_path / "f", unit_vectors(400, 8)))
    expected = truth.search(queries, k=5).rows
    assert not np.array_equal(FaissIndex(path).search(queries, k=5).rows, expected)
    assert np.array_equal(FaissIndex(path, nprobe=16).search(queries, k=5).rows, expected)


def test_ef_search_is_set_inside_a_pretransformed_index(tmp_path: Path) -> None:
    path = write_index(tmp_path / "some.index", unit_vectors(300, 8), "PCA4,HNSW8")
    assert len(FaissIndex(path, ef_search=64).search(unit_vectors(1, 8), k=3).rows[0]) == 3


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"nprobe": 4}, "--nprobe is for IVF indexes, and"),
        ({"ef_search": 4}, "--ef_search is for HNSW indexes, and"),
        ({"nprobe": 0}, "--nprobe is 0; it must be at least 1"),
    ],
)
def test_a_setting_that_the_index_does_not_have_is_refused(
    index_path: Path, setting: dict[str, int], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        FaissIndex(index_path, **setting)  # type: ignore[arg-type]


def test_an_index_by_distance_is_refused(tmp_path: Path) -> None:
    index = faiss.IndexFlatL2(4)
    index.add(unit_vectors(5, 4))
    faiss.write_index(index, str(tmp_path / "l2.index"))
    with pytest.raises(InputError, match="ranks by distance, not by inner product"):
        FaissIndex(tmp_path / "l2.index")


@pytest.mark.parametrize("kept_bytes", [0, 3, 20, -5])
def test_another_file_cut_short_is_reported_in_one_sentence(tmp_path: Path, kept_bytes: int) -> None:
    path = write_index(tmp_path / "sq8.index", unit_vectors(50, 8), "SQ8")
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(InputError, match="is cut short or is not a FAISS index") as caught:
        FaissIndex(path)
    assert "\n" not in str(caught.value)


def test_faiss_gpu_without_gpu_support_names_the_package_to_install(
    index_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(InputError, match="install faiss-gpu-cu12 instead of faiss-cpu"):
        FaissIndex(index_path, use_gpu=True)


def test_faiss_gpu_without_a_visible_gpu_says_where_to_look(index_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        FaissIndex(index_path, use_gpu=True)


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
    assert FaissIndex(index_path, use_gpu=True).about.rows == 2
    assert [(options.useFloat16, options.shard) for options in given] == [(True, True)]


def test_searching_leaves_no_page_of_the_file_in_this_processs_memory(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((50_000, 128)).astype(np.float32)
    index = ExactIndex(write_flat_index(tmp_path / "flat.index", vectors))
    index.search(vectors[:64], 10)
    maps = Path("/proc/self/smaps").read_text().split("flat.index\n")[1]
    assert "Rss:                   0 kB" in maps.split("VmFlags")[0]
