"""The encoder around a fake tokenizer and model whose numbers can be worked out by hand, and around MiniLM."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from retriever_fakes import minilm_folder
from transformers import BatchEncoding

from local_dense_retriever import torch_encoder
from local_dense_retriever.encoder import pool
from local_dense_retriever.errors import InputError
from local_dense_retriever.torch_encoder import TorchEncoder


class FakeTokenizer:
    """One token a character, its code point; padded with 0 on the right."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(
        self, texts: list[str], padding: bool, truncation: bool, max_length: int, return_tensors: str
    ) -> BatchEncoding:
        self.batches.append(texts)
        width = min(max(map(len, texts)), max_length)
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor([ord(character) for character in text[:width]])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


class FakeModel:
    """The state of a token is (its id, 1)."""

    config = SimpleNamespace(hidden_size=2)

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.stack([input_ids.float(), torch.ones(input_ids.shape)], dim=-1))


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> FakeTokenizer:
    fake = FakeTokenizer()
    monkeypatch.setattr(torch_encoder, "load_model", lambda model, device: (fake, FakeModel(), []))
    return fake


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_pooling_adds_up_all_states_but_those_of_padding_or_takes_the_first(kind: Callable[..., Any]) -> None:
    states, mask = kind([[[2.0, 0.0], [4.0, 6.0], [100.0, 100.0]]]), kind([[1, 1, 0]])
    assert pool(states, mask, "mean").tolist() == [[2.0 + 4.0, 0.0 + 6.0]]
    assert pool(states, mask, "cls").tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("e5", "query: who", "passage: who"),
        ("bge", "Represent this sentence for searching relevant passages: who", "who"),
        ("minilm", "who", "who"),
    ],
)
def test_each_encoder_puts_its_own_prefixes(tokenizer: FakeTokenizer, name: str, query: str, passage: str) -> None:
    encoder = TorchEncoder(name, "fake")
    encoder.encode_queries(["who"])
    encoder.encode_passages(["who"])
    assert tokenizer.batches == [[query], [passage]]


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("minilm", (2.0, 1.0)),  # ids 1 and 3: mean (2, 1)
        ("bge", (1.0, 1.0)),  # the first one: (1, 1)
    ],
)
def test_vectors_are_pooled_as_the_encoder_was_trained_and_have_length_one(
    tokenizer: FakeTokenizer, name: str, pooled: tuple[float, float]
) -> None:
    vectors = TorchEncoder(name, "fake").encode_passages(["\x01\x03", "\x01\x03\x09\x09"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], np.array(pooled) / np.linalg.norm(pooled), rtol=1e-6)


def test_texts_are_batched_by_length_and_come_back_in_their_order(tokenizer: FakeTokenizer) -> None:
    texts = ["\x02", "\x05" * 4, "\x03" * 2, "\x04" * 3, "\x01"]
    vectors = TorchEncoder("minilm", "fake", batch_size=2).encode_passages(texts)
    assert tokenizer.batches == [["\x05" * 4, "\x04" * 3], ["\x03" * 2, "\x02"], ["\x01"]]
    # A text of nothing but character c has the mean (c, 1), so the ratio of the two numbers is c again.
    np.testing.assert_allclose(vectors[:, 0] / vectors[:, 1], [2, 5, 3, 4, 1], rtol=1e-5)


def test_an_unknown_encoder_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'dpr': the known encoders are e5, bge, minilm"):
        TorchEncoder("dpr", "fake")


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": "not json"}])
def test_a_folder_that_holds_no_model_is_reported_in_one_sentence(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="cannot load the encoder") as caught:
        TorchEncoder("e5", str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.model
def test_a_model_folder_without_its_tokenizer_is_refused_and_not_read_as_unknown_words(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(Path(minilm_folder()) / name)
    with pytest.raises(InputError, match="of the model's 30522 tokens: copy the model's tokenizer files"):
        TorchEncoder("minilm", str(tmp_path))


@pytest.mark.model
def test_minilm_from_a_folder_needs_no_network_and_finds_the_paraphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = TorchEncoder("minilm", minilm_folder(), batch_size=2)
    passages = [
        "Bees make honey.",
        "The Eiffel Tower stands in Paris, the capital of France.",
        "Iron rusts in the rain.",
    ]
    vectors = encoder.encode_passages(passages)  # (3, 384)
    assert vectors.shape == (3, encoder.dim) == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    query = encoder.encode_queries(["Where is the Eiffel Tower?"])[0]
    assert int(np.argmax(vectors @ query)) == 1
    alone = encoder.encode_passages(passages[:1])[0]  # padding in a batch changes nothing
    np.testing.assert_allclose(vectors[0], alone, atol=1e-5)
