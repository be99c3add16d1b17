"""A tiny random model for the demo's parts, plain computations to hold them against, and a small world on disk."""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.engine import Engine, Request, SamplingParams

WAIT_S = 20.0  # far more than anything here takes: a test that waits so long has failed


def tiny_model(tokenizer: Any, *, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    """Two layers with grouped-query attention; weights large enough that no two logits are nearly equal."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def some_ids(count: int, seed: int = 0) -> list[int]:
    """Ids of ordinary tokens; the tiny tokenizer's three special ones come first."""
    return torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain_log_probs(model: Any, ids: Sequence[int], start: int, temperature: float = 1.0) -> list[float]:
    """log_softmax(logits / temperature) of ids[start:], by one forward pass without any cache."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return [log_probs[position - 1, ids[position]].item() for position in range(start, len(ids))]


def plain_greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest next token, `count` times, each by a forward pass over everything."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def request(ids: Sequence[int], name: str = "r", **params: Any) -> Request:
    """A request that does not end early unless told to."""
    values = {"max_new_tokens": 8, "ignore_eos": True} | params
    return Request(name, list(ids), SamplingParams.from_json(values))


def complete(engine: Engine, *requests: Request) -> list[Request]:
    """Submits all at the same moment, so that the engine admits as many in one round as it has slots, and waits."""
    with engine._changed:
        futures = [engine.submit(one) for one in requests]
    return [future.result(WAIT_S) for future in futures]


def assert_ended(threads: Iterable[threading.Thread]) -> None:
    """Threads may take a moment to end (transformers reads weights in a pool), but none may stay."""
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), thread.name


def kind_of_end(reply: Request) -> str:
    """The type of its finish reason."""
    assert reply.finish_reason is not None
    return reply.finish_reason["type"]


class Steps:
    """Stops an engine before each forward pass until `allow` lets some pass."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allowed = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        forward = engine._model.model.forward

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self._arrived.release()
            assert self._allowed.acquire(timeout=WAIT_S)
            return forward(*args, **kwargs)

        monkeypatch.setattr(engine._model.model, "forward", stepped)

    def allow(self, count: int = 10_000) -> None:
        """Lets the next `count` passes go on."""
        self._allowed.release(count)

    def await_arrival(self, count: int = 1) -> None:
        """Waits until the engine has come to `count` more passes."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=WAIT_S)


@contextmanager
def scripted_tokens(monkeypatch: pytest.MonkeyPatch, ids: Sequence[int]) -> Iterator[None]:
    """Every request samples these tokens, in this order, whatever the model says; log-probability -0.5 each."""
    position = iter(ids)

    def sample(logits: torch.Tensor, params: list, *_: object) -> tuple[list[int], list[float]]:
        token = next(position)
        return [token] * len(params), [-0.5] * len(params)

    with monkeypatch.context() as patch:
        patch.setattr("demo.engine.sample", sample)
        yield


def save_model(folder: Path, tokenizer: Any) -> Path:
    """The tiny model as a Hugging Face folder."""
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_world(folder: Path) -> Path:
    """A corpus of one passage, and one question about it in either set."""
    folder.mkdir(parents=True)
    passage = {"id": "p0", "contents": '"Kenya"\nThe capital of Kenya is Nairobi.'}
    hop = {"query": "capital of Kenya", "passage_id": "p0", "found": "Nairobi"}
    question = {"id": "q0", "text": "What is the capital of Kenya?", "answers": ["Nairobi"], "hops": [hop]}
    (folder / "corpus.jsonl").write_text(json.dumps(passage) + "\n")
    for name in ("train.jsonl", "held_out.jsonl"):
        (folder / name).write_text(json.dumps(question) + "\n")
    return folder
