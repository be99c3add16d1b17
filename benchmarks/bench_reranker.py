"""What a cross-encoder adds to an index, and what it costs.

    python -m benchmarks.bench_reranker [--json FILE]

No package ships a cross-encoder, so one is trained, in minutes: MiniLM with a classification head, on the demo's
training questions. A better one will do better; the cost is that of its 6 layers. It reranks what the held-out
questions and their searches find among the demo's 2,858 facts, by MiniLM's vectors and by BM25.

Recall@k is the share of queries whose passage is among the first k of those that are reranked, before and after.
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.reporting import CACHE, Report, parser, run
from demo.models import encoder_folder
from demo.retriever_process import build_index, index_path
from demo.world_facts import Question, build_world, write_world
from local_dense_retriever.bm25 import Bm25Searcher, build_bm25
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.encoder_choice import load_encoder
from local_dense_retriever.exact_index import ExactIndex
from local_dense_retriever.reranker import CrossEncoder, Reranker
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import DenseSearcher, Hit

FOLDER = CACHE / "reranker"
DEPTH = 32
TRAINED, ASKED = 400, 100  # queries
NEGATIVES, GROUPS, LEARNING_RATE = 3, 8, 5e-5  # wrong passages a query; queries a step
MAX_TOKENS = 96  # of a pair, in training


class Labelled(NamedTuple):
    query: str
    passage_id: str  # the one that it needs


def by_vectors(corpus: Path) -> Retriever:
    """MiniLM's vectors of this corpus, searched exactly."""
    index, model = index_path(CACHE, corpus), encoder_folder()  # the demo's own, if it has run
    build_index(corpus, index, model)
    return Retriever(DenseSearcher(load_encoder("minilm", str(model)), ExactIndex(index)), Corpus(corpus))


def by_words(path: Path) -> Retriever:
    """BM25 of this corpus."""
    corpus, folder = Corpus(path), FOLDER / "words"
    if not folder.exists():
        build_bm25((passage.contents for passage in corpus), folder)
    return Retriever(Bm25Searcher(folder), corpus)


def searches(questions: Sequence[Question]) -> list[Labelled]:
    """Every search of a question's solution, and the question itself for the first of them."""
    own = [Labelled(question.text, question.hops[0].passage_id) for question in questions]
    return own + [Labelled(hop.query, hop.passage_id) for question in questions for hop in question.hops]


def train(retriever: Retriever, labelled: Sequence[Labelled], folder: Path) -> None:
    """Writes a cross-encoder into `folder`: for each query the right passage must beat those found beside it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=1)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    examples = _examples(retriever, labelled)
    for start in range(0, len(examples), GROUPS):
        group = examples[start : start + GROUPS]
        queries, passages = zip(*[(query, passage) for query, own in group for passage in own], strict=True)
        batch = tokenizer(
            list(queries), list(passages), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        logits = model(**batch).logits.reshape(len(group), 1 + NEGATIVES)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(group), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        print(f"query {start} of {len(examples)}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _examples(retriever: Retriever, labelled: Sequence[Labelled]) -> list[tuple[str, list[str]]]:
    """Queries with the right passage and NEGATIVES wrong ones, if it is found at all."""
    generator, examples = random.Random(0), []
    for (query, wanted), hits in zip(labelled, retriever.search([one.query for one in labelled], DEPTH), strict=True):
        right = [hit.passage.contents for hit in hits if hit.passage.id == wanted]
        wrong = [hit.passage.contents for hit in hits if hit.passage.id != wanted]
        if right and len(wrong) >= NEGATIVES:
            examples.append((query, right + generator.sample(wrong, NEGATIVES)))
    return examples


def measured(name: str, retriever: Retriever, asked: Sequence[Labelled], model: Path) -> dict[str, Any]:
    """A row of the table."""
    queries = [one.query for one in asked]
    found = retriever.search(queries, DEPTH)
    reranker = Reranker(CrossEncoder(str(model)), DEPTH)
    reranker.rerank(queries[:2], found[:2])  # warm
    began, cpu = time.perf_counter(), time.process_time()
    reranked = [reranker.rerank([query], [hits])[0] for query, hits in zip(queries, found, strict=True)]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = [(query, hit.passage.contents) for query, hits in zip(queries, found, strict=True) for hit in hits]
    return {
        "index": name,
        **{"recall@1": recall(found, asked, 1), "recall@1 reranked": recall(reranked, asked, 1)},
        **{"recall@3": recall(found, asked, 3), "recall@3 reranked": recall(reranked, asked, 3)},
        f"recall@{DEPTH}": recall(found, asked, DEPTH),  # which reranking cannot exceed
        "tokens/pair": sum(len(tokenizer(*pair)["input_ids"]) for pair in pairs) / len(pairs),
        **{"ms/query": 1000 * seconds / len(asked), "CPU ms/query": 1000 * cpu / len(asked)},
    }


def recall(found: Sequence[Sequence[Hit]], asked: Sequence[Labelled], k: int) -> float:
    """The share of queries whose passage is among their first k hits."""
    right = (one.passage_id in [hit.passage.id for hit in hits[:k]] for one, hits in zip(asked, found, strict=True))
    return sum(right) / len(asked)


def measure(report: Report) -> None:
    """Trains a cross-encoder, once, then measures a row for each index."""
    facts, corpus, model = build_world(), FOLDER / "world" / "corpus.jsonl", FOLDER / "model"
    write_world(facts, corpus.parent)
    vectors = by_vectors(corpus)
    if not model.exists():
        train(vectors, random.Random(0).sample(searches(facts.train), TRAINED), model)
    asked = random.Random(1).sample(searches(facts.held_out), ASKED)
    rows = [measured("MiniLM's vectors", vectors, asked, model), measured("BM25", by_words(corpus), asked, model)]
    report.table(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.0f}", rows)


if __name__ == "__main__":
    run(measure, parser(__doc__))
