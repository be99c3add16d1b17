"""Reranking: a small real cross-encoder with random weights, and the order that its numbers give."""

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from retriever_fakes import ColourEncoder, client_of, minilm_folder, write_corpus, write_flat_index
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from local_dense_retriever import encoder_choice
from local_dense_retriever.corpus import Corpus, Passage
from local_dense_retriever.errors import InputError
from local_dense_retriever.faiss_index import FaissIndex
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.reranker import CrossEncoder, Reranker
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import DenseSearcher, Hit

POSITIONS = 64
TEXTS = ["red", "red green", "red red blue", "green", "blue", "green blue"]


def write_model(folder: Path, classes: int = 1) -> str:
    """A BERT of one layer, and MiniLM's tokenizer."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 1.0,
    }
    config = BertConfig(**sizes, vocab_size=30522, max_position_embeddings=POSITIONS, num_labels=classes)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(minilm_folder()) / name, folder)
    return str(folder)


def logits_one_by_one(folder: str, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
    """(N, classes) by transformers alone, without batches and padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return [model(**tokenizer(*pair, return_tensors="pt")).logits[0].tolist() for pair in pairs]


class CountingModel:
    """A cross-encoder whose logit is the number of reds in the passage; notes what it reads."""

    name = "reds"

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []

    def logits(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        self.read += pairs
        return np.array([passage.count("red") for _, passage in pairs], np.float64)


def hits(*texts: str) -> list[Hit]:
    return [Hit(Passage(text, text), 1 - rank / 10) for rank, text in enumerate(texts)]


def order(found: Sequence[Hit]) -> list[str]:
    return [hit.passage.contents for hit in found]


# ---- The model -------------------------------------------------------------------------------------------------------


def test_pairs_in_batches_get_the_logits_that_they_get_alone_in_their_own_order(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    pairs = [(f"who is {'very ' * (i % 4)}old", f"number {i} {'stone ' * (i * 7 % 23)}") for i in range(70)]
    expected = [logits[0] for logits in logits_one_by_one(folder, pairs)]
    np.testing.assert_allclose(CrossEncoder(folder).logits(pairs), expected, atol=1e-5)
    assert CrossEncoder(folder).logits([]).shape == (0,)


def test_with_two_classes_the_second_one_counts(tmp_path: Path) -> None:
    folder = write_model(tmp_path, classes=2)
    expected = [fits - not_ for not_, fits in logits_one_by_one(folder, [("a", "b"), ("c", "d e")])]
    np.testing.assert_allclose(CrossEncoder(folder).logits([("a", "b"), ("c", "d e")]), expected, atol=1e-5)


def test_a_long_passage_is_truncated_and_the_question_is_not(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    model = CrossEncoder(folder)
    long, longer = "stone " * 59, "stone " * 5000  # [CLS] who [SEP] and [SEP] leave 60 tokens
    short, cut, other = model.logits([("who", long + "stone"), ("who", longer), ("what", longer)])
    assert short == pytest.approx(cut, abs=1e-5) and abs(cut - other) > 1e-3
    assert np.isfinite(model.logits([(longer, "red"), (longer, longer), ("", "")])).all()


def test_a_pair_of_which_the_model_makes_nan_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CrossEncoder(write_model(tmp_path))
    monkeypatch.setattr(model, "_batch_logits", lambda pairs: np.array([math.nan, -3.0, 2.0], np.float32))
    [found] = Reranker(model, 3).rerank(["q"], [hits("aaa", "bb", "c")])
    assert order(found) == ["c", "bb", "aaa"] and found[2].score == 0.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("no folder", "cannot load --reranker .*give a folder with config.json"),
        ("damaged", "cannot load --reranker"),
        ("no head", "is not a cross-encoder: its weights have no classification head"),
        ("three classes", "has 3 classes: a cross-encoder has 1 or 2"),
        ("no tokenizer", "tokenizer"),
    ],
)
def test_a_model_that_is_not_a_cross_encoder_is_reported_in_one_sentence(
    tmp_path: Path, change: str, complaint: str
) -> None:
    folder = tmp_path / "model"
    if change != "no folder":
        write_model(folder, classes=3 if change == "three classes" else 1)
    if change == "damaged":
        (folder / "model.safetensors").write_bytes(b"damaged")
    if change == "no head":
        BertForSequenceClassification.from_pretrained(folder).bert.save_pretrained(folder)
    if change == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    with pytest.raises(InputError, match=complaint) as caught:
        CrossEncoder(str(folder))
    assert "\n" not in str(caught.value)


# ---- The order -------------------------------------------------------------------------------------------------------


def test_hits_are_sorted_by_the_model_and_equal_ones_stay_in_their_order() -> None:
    found = Reranker(CountingModel(), 4).rerank(
        ["q", "r"], [hits("blue", "red blue", "green", "red red"), hits("red green", "green", "red")]
    )
    assert [order(own) for own in found] == [["red red", "red blue", "blue", "green"], ["red green", "red", "green"]]
    assert [hit.score for hit in found[0]] == pytest.approx([0.880797, 0.731059, 0.5, 0.5])  # 1 / (1 + exp(-reds))


def test_hits_beyond_the_depth_are_not_reranked_and_come_last() -> None:
    model = CountingModel()
    [found] = Reranker(model, 2).rerank(["q"], [hits("blue", "red", "green", "red red")])
    assert order(found) == ["red", "blue", "green", "red red"]
    assert [hit.score for hit in found[2:]] == [0.0, 0.0]
    assert model.read == [("q", "blue"), ("q", "red")]


# ---- In the retriever ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encoder_choice, "load_encoder", lambda name, model: ColourEncoder())
    write_corpus(tmp_path / "c.jsonl", TEXTS)
    write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(TEXTS))
    return tmp_path


def reranked(folder: Path, depth: int) -> Retriever:
    searcher = DenseSearcher(ColourEncoder(), FaissIndex(folder / "flat.index"))  # type: ignore[arg-type]
    return Retriever(searcher, Corpus(folder / "c.jsonl"), Reranker(CountingModel(), depth))  # type: ignore[arg-type]


def test_results_depend_neither_on_topk_nor_on_a_batch_with_a_larger_topk(folder: Path) -> None:
    retriever = reranked(folder, depth=3)
    longest = order(retriever.search(["blue"], 6)[0])
    # By vectors: blue, then green blue and red red blue, then those without any blue.
    assert longest[:3] == ["red red blue", "blue", "green blue"] and len(longest) == 6
    for topk in range(1, 7):
        assert order(retriever.search(["blue"], topk)[0]) == longest[:topk]


def test_a_corpus_smaller_than_the_depth_is_reranked_whole(folder: Path) -> None:
    found = order(reranked(folder, depth=50).search(["blue"], 9)[0])
    assert found[0] == "red red blue" and sorted(found) == sorted(TEXTS)


async def test_the_server_answers_in_the_reranked_order_with_scores_of_zero_to_one(folder: Path) -> None:
    async with client_of(reranked(folder, depth=4)) as client:
        reply = await client.post("/retrieve", json={"queries": ["blue"], "topk": 6, "return_scores": True})
        [found] = reply.json()["result"]
        assert found[0]["document"] == {"id": "p2", "contents": "red red blue"}
        scores = [hit["score"] for hit in found]
        assert scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(0.880797) and scores[-1] == 0
        assert (await client.get("/ready")).json()["reranker"] == "reds"


def test_the_flag_loads_it_and_a_depth_of_zero_is_refused(folder: Path) -> None:
    parser = argparse.ArgumentParser()
    add_index_arguments(parser)
    paths = ["--index_path", str(folder / "flat.index"), "--corpus_path", str(folder / "c.jsonl")]
    paths += ["--retriever_name", "minilm", "--reranker", write_model(folder / "model")]
    reports: list[str] = []
    retriever = load_retriever(parser.parse_args(paths), reports.append)
    assert retriever.describe()["reranker"] == str(folder / "model")
    assert reports[-1] == f"the reranker {folder / 'model'}" and len(retriever.search(["blue"], 2)[0]) == 2
    with pytest.raises(InputError, match="--rerank_depth is 0; it must be at least 1"):
        load_retriever(parser.parse_args([*paths, "--rerank_depth", "0"]), reports.append)
