"""Searchers and the retriever around them, over small real files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from retriever_fakes import ColourEncoder, write_corpus, write_flat_index

from local_dense_retriever import audit
from local_dense_retriever.bm25 import Bm25Searcher, build_bm25
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.faiss_index import FaissIndex
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import DenseSearcher, HybridSearcher, fuse

TEXTS = [
    "The capital of Kenya is Nairobi.",
    "The capital of France is Paris.",
    "Nairobi lies in the highlands, and Nairobi grows.",
    "Iron rusts in the rain.",
]


def colour_searcher(folder: Path, texts: Sequence[str]) -> DenseSearcher:
    path = write_flat_index(folder / "flat.index", ColourEncoder().encode_passages(texts))
    return DenseSearcher(ColourEncoder(), FaissIndex(path))


def bm25(folder: Path, texts: Sequence[str] = TEXTS) -> Bm25Searcher:
    build_bm25(texts, folder / "bm25")
    return Bm25Searcher(folder / "bm25")


def test_row_minus_one_is_no_passage_and_never_the_last_one(tmp_path: Path) -> None:
    texts = ["red", "green"]
    corpus = Corpus(write_corpus(tmp_path / "c.jsonl", texts))
    hits = Retriever(colour_searcher(tmp_path, texts), corpus).search(["green", "red"], topk=5)
    assert [[hit.passage.id for hit in found] for found in hits] == [["p1", "p0"], ["p0", "p1"]]


def test_the_retriever_describes_its_index(tmp_path: Path) -> None:
    corpus = Corpus(write_corpus(tmp_path / "c.jsonl", ["red", "green"]))
    about = Retriever(colour_searcher(tmp_path, ["red", "green"]), corpus).describe()
    # 45 bytes of header and 2 vectors of 3 numbers
    assert about == {"backend": "faiss IndexFlatIP", "rows": 2, "dimension": 3, "bytes": 45 + 24, "encoder": "colours"}


def test_the_retriever_reports_an_audit_of_its_corpus(tmp_path: Path) -> None:
    corpus = Corpus(write_corpus(tmp_path / "c.jsonl", ["red", "green"]))
    (tmp_path / "nq.jsonl").write_text('{"golden_answers": ["red"]}\n{"golden_answers": ["pink"]}\n')
    audit.audit(corpus, [tmp_path / "nq.jsonl"])
    about = Retriever(colour_searcher(tmp_path, ["red", "green"]), corpus).describe()
    assert str(about["audit"]).startswith("nq: 2 questions; some passage has a gold answer for 0.500")


# ---- BM25 ------------------------------------------------------------------------------------------------------------


def test_bm25_ranks_by_rare_words_and_skips_passages_without_a_shared_word(tmp_path: Path) -> None:
    found = bm25(tmp_path).search(["Where does Nairobi lie?", "capital of France"], topk=3)
    assert found.rows.tolist() == [[2, 0, -1], [1, 0, -1]]
    assert (found.scores[:, 0] > found.scores[:, 1]).all()


@pytest.mark.parametrize("query", ["zebra", "the", "?!", ""])
def test_a_query_of_unknown_words_finds_nothing_and_is_not_an_error(tmp_path: Path, query: str) -> None:
    assert bm25(tmp_path).search([query, "Nairobi"], topk=2).rows.tolist() == [[-1, -1], [2, 0]]


def test_bm25_returns_fewer_hits_if_there_are_not_enough(tmp_path: Path) -> None:
    searcher = bm25(tmp_path, ["red", "green"])
    assert (searcher.about.rows, searcher.search(["red"], topk=5).rows.tolist()) == (2, [[0, -1, -1, -1, -1]])


def test_a_folder_that_is_not_a_bm25_index_or_a_damaged_one_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the folder of a BM25 index"):
        Bm25Searcher(tmp_path)
    build_bm25(TEXTS, tmp_path / "bm25")
    (tmp_path / "bm25" / "indices.csc.index.npy").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        Bm25Searcher(tmp_path / "bm25")


# ---- Hybrid ----------------------------------------------------------------------------------------------------------


def test_fusion_by_reciprocal_ranks() -> None:
    # row 7: 1/61 + 1/62; row 5: 1/61; row 9: 1/62; the -1 is none
    assert fuse([[7, 9, -1], [5, 7]]) == [(7, 1 / 61 + 1 / 62), (5, 1 / 61), (9, 1 / 62)]


def test_hybrid_search_puts_first_what_both_find(tmp_path: Path) -> None:
    texts = ["red stone", "red apple", "green apple"]
    hybrid = HybridSearcher(colour_searcher(tmp_path, texts), bm25(tmp_path, texts))
    # dense: red stone, red apple (equal), green apple; BM25: both apples, the shorter query word count decides nothing
    found = hybrid.search(["red apple"], topk=5)
    assert found.rows[0, 0] == 1
    assert found.rows.tolist()[0][3:] == [-1, -1]
    assert (np.diff(found.scores[0, :3]) <= 0).all()


def test_a_hybrid_of_different_corpora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 1 rows but .* has 2"):
        HybridSearcher(colour_searcher(tmp_path, ["red"]), bm25(tmp_path, ["red", "green"]))


def test_bm25_results_do_not_depend_on_topk(tmp_path: Path) -> None:
    """Requests share a batch, which is searched at its largest topk. Of 60 equal passages the first are found."""
    texts = [f"{'stone' if row % 5 else 'stone stone'} {'abcdefgh'[row % 8] * 3}" for row in range(60)]
    searcher = bm25(tmp_path, texts)
    longest = searcher.search(["stone"], topk=60).rows[0].tolist()
    for topk in (1, 3, 7, 20, 40):
        assert searcher.search(["stone"], topk).rows[0].tolist() == longest[:topk]
