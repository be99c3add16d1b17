"""The fakes of engine and retriever held against the real servers: the same request, an answer of the same shape."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_helpers import tiny_model
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from retriever_fakes import ColourEncoder, client_of, write_corpus, write_flat_index
from router_fakes import FakeWorker, said

from demo.engine import Engine
from demo.engine_server import serving
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.faiss_index import FaissIndex
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import DenseSearcher

TOKENIZER = tiny_tokenizer()


def shape(value: Any) -> Any:
    """The types of a JSON value: keys of objects, the first item of lists."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]] if value and not isinstance(value[0], float) else "numbers"
    return type(value).__name__


async def generate(port: int, **params: Any) -> dict:
    body = {
        "input_ids": TOKENIZER.encode("capital of Kenya"),
        "sampling_params": {"max_new_tokens": 5, "ignore_eos": True, "no_stop_trim": True, **params},
        "return_logprob": True,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return (await client.post(f"http://127.0.0.1:{port}/generate", json=body)).json()


FAKE_ENGINES = [
    FakeEngine(TOKENIZER, [Turn("longer than the limit")]),
    FakeWorker([said("longer than the limit", finish="length")]),
]


@pytest.mark.parametrize("fake", FAKE_ENGINES, ids=["engine", "worker"])
async def test_the_fake_engines_answer_as_the_demos_engine_does(fake: FakeEngine | FakeWorker) -> None:
    async with fake:
        answer = await generate(fake.port)
    with Engine(tiny_model(TOKENIZER), TOKENIZER, max_length=64) as engine, serving(engine) as port:
        expected = await generate(port)
    expected["meta_info"]["finish_reason"].pop("length")  # the fake does not repeat the count
    answer["meta_info"]["finish_reason"].pop("matched", None)
    assert shape(answer) == shape(expected)
    for reply in (answer, expected):
        triples = reply["meta_info"]["output_token_logprobs"]
        assert [token for _, token, _ in triples] == reply["output_ids"]
        assert reply["meta_info"]["finish_reason"]["type"] == "length"


async def test_the_fake_retriever_answers_as_the_real_one_does(tmp_path: Path) -> None:
    texts = ['"Red"\nred is a colour', '"Blue"\nblue is a colour']
    index = write_flat_index(tmp_path / "flat.index", ColourEncoder().encode_passages(texts))
    searcher = DenseSearcher(ColourEncoder(), FaissIndex(index))
    retriever = Retriever(searcher, Corpus(write_corpus(tmp_path / "c.jsonl", texts)))
    body = {"queries": ["red", "blue"], "topk": 2, "return_scores": True}
    async with client_of(retriever) as client:
        expected = (await client.post("/retrieve", json=body)).json()
    async with FakeRetriever(documents=texts) as fake, httpx.AsyncClient(trust_env=False) as client:
        answer = (await client.post(f"{fake.url}/retrieve", json=body)).json()
    assert shape(answer) == shape(expected)
    assert [len(found) for found in answer["result"]] == [len(found) for found in expected["result"]] == [2, 2]
