"""What a cross-encoder adds to an index, and what it costs.

    python -m benchmarks.bench_reranker [--json FILE]

No package ships a cross-encoder, so one is trained for each corpus, in minutes: MiniLM with a classification head, on
questions that are not asked afterwards. A better one will do better; the cost is that of its 6 layers. Three indexes:

    world          the demo's 2,858 facts, by MiniLM's vectors; queries are its questions and their searches
    world-words    the same by BM25, and with the same cross-encoder
    wordnet        117,659 definitions, by BM25; queries are sentences, each of which uses one of the words defined

Recall@k is the share of queries whose passage is among the first k of those that are reranked, before and after.
"""

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.reporting import ROOT, finish, parser, print_table
from benchmarks.wordnet_corpus import PARTS_OF_SPEECH, read_meanings, write_wordnet
from demo.models import encoder_folder
from demo.retriever_process import build_index, index_path
from demo.world_facts import Question, build_world, write_world
from local_dense_retriever.bm25 import Bm25Searcher, build_bm25
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.encoder import load_encoder
from local_dense_retriever.exact_index import ExactIndex
from local_dense_retriever.reranker import CrossEncoder, Reranker
from local_dense_retriever.retriever import Hit, Retriever
from local_dense_retriever.searcher import DenseSearcher

FOLDER = ROOT / ".cache" / "reranker"
DEPTH = 32
TRAINED, ASKED = {"world": 400, "wordnet": 1600}, 100  # queries
NEGATIVES, GROUPS, LEARNING_RATE = 3, 8, 5e-5  # wrong passages a query; queries a step
MAX_TOKENS = 96  # of a pair, in training


class Labelled(NamedTuple):
    query: str
    passage_id: str  # the one that it needs


class Figures(NamedTuple):
    name: str
    recall_1: tuple[float, float]  # before, after
    recall_3: tuple[float, float]
    first_depth: float  # recall@DEPTH, which reranking cannot exceed
    pairs_tokens: float  # mean
    ms_a_query: float
    cpu_ms_a_query: float


def world() -> tuple[Retriever, list[Labelled], list[Labelled]]:
    """The demo's corpus by vectors; what its training and its held-out questions search for."""
    folder = FOLDER / "world"
    facts = build_world()
    write_world(facts, folder)
    corpus, model = folder / "corpus.jsonl", encoder_folder()
    index = index_path(ROOT / ".cache", corpus)  # the demo's own, if it has run
    build_index(corpus, index, model)
    searcher = DenseSearcher(load_encoder("minilm", str(model)), ExactIndex(index))
    return Retriever(searcher, Corpus(corpus)), _searches(facts.train), _searches(facts.held_out)


def world_words() -> tuple[Retriever, list[Labelled], list[Labelled]]:
    """The demo's corpus by words."""
    _, trained, asked = world()
    corpus, folder = Corpus(FOLDER / "world" / "corpus.jsonl"), FOLDER / "world-words"
    return Retriever(_words(corpus, folder), corpus), trained, asked


def _words(corpus: Corpus, folder: Path) -> Bm25Searcher:
    if not folder.exists():
        build_bm25((corpus.passages([row])[0].contents for row in range(len(corpus))), folder)
    return Bm25Searcher(folder)


def _searches(questions: Sequence[Question]) -> list[Labelled]:
    """Every search of a question's solution, and the question itself for the first of them."""
    own = [Labelled(question.text, question.hops[0].passage_id) for question in questions]
    return own + [Labelled(hop.query, hop.passage_id) for question in questions for hop in question.hops]


def wordnet() -> tuple[Retriever, list[Labelled], list[Labelled]]:
    """WordNet by words; sentences with the row of the meaning in which a word is used there."""
    files = write_wordnet(ROOT / ".cache" / "wordnet")
    folder = FOLDER / "wordnet-words"
    FOLDER.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(files.corpus)
    database = [files.corpus.parent / "package" / "dict" / f"data.{part}" for part in PARTS_OF_SPEECH]
    meanings = [meaning for path in database for meaning in read_meanings(path)]
    labelled = [Labelled(text, str(row)) for row, meaning in enumerate(meanings) for text in meaning.examples]
    random.Random(0).shuffle(labelled)
    half = len(labelled) // 2
    return Retriever(_words(corpus, folder), corpus), labelled[:half], labelled[half:]


def train(retriever: Retriever, labelled: Sequence[Labelled], folder: Path) -> None:
    """Writes a cross-encoder into `folder`: for each query the right passage must beat those found beside it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=1)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    groups = _groups(retriever, labelled)
    for step, start in enumerate(range(0, len(groups), GROUPS)):
        group = groups[start : start + GROUPS]
        queries, passages = zip(*[(query, passage) for query, own in group for passage in own], strict=True)
        batch = tokenizer(
            list(queries), list(passages), padding=True, truncation=True, max_length=96, return_tensors="pt"
        )
        logits = model(**batch).logits.reshape(len(group), 1 + NEGATIVES)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(group), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step} of {len(groups) // GROUPS}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _groups(retriever: Retriever, labelled: Sequence[Labelled]) -> list[tuple[str, list[str]]]:
    """Queries with the right passage and NEGATIVES wrong ones, if it is found at all."""
    generator, groups = random.Random(0), []
    for (query, wanted), hits in zip(labelled, retriever.search([one.query for one in labelled], DEPTH), strict=True):
        right = [hit.passage.contents for hit in hits if hit.passage.id == wanted]
        wrong = [hit.passage.contents for hit in hits if hit.passage.id != wanted]
        if right and len(wrong) >= NEGATIVES:
            groups.append((query, right + generator.sample(wrong, NEGATIVES)))
    return groups


def measure(name: str, retriever: Retriever, train_on: Sequence[Labelled], ask: Sequence[Labelled]) -> Figures:
    corpus = name.partition("-")[0]
    folder = FOLDER / f"{corpus}-model"
    if not folder.exists():
        train(retriever, random.Random(0).sample(train_on, min(TRAINED[corpus], len(train_on))), folder)
    asked = random.Random(1).sample(ask, min(ASKED, len(ask)))
    queries = [one.query for one in asked]
    found = retriever.search(queries, DEPTH)
    reranker = Reranker(CrossEncoder(str(folder)), DEPTH)
    reranker.rerank(queries[:2], found[:2])  # warm
    began, cpu = time.perf_counter(), time.process_time()
    reranked = [reranker.rerank([query], [hits])[0] for query, hits in zip(queries, found, strict=True)]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [(query, hit.passage.contents) for query, hits in zip(queries, found, strict=True) for hit in hits]
    tokens = sum(len(tokenizer(*pair)["input_ids"]) for pair in pairs) / len(pairs)
    return Figures(
        name,
        (recall(found, asked, 1), recall(reranked, asked, 1)),
        (recall(found, asked, 3), recall(reranked, asked, 3)),
        recall(found, asked, DEPTH),
        tokens,
        1000 * seconds / len(asked),
        1000 * cpu / len(asked),
    )


def recall(found: Sequence[Sequence[Hit]], asked: Sequence[Labelled], k: int) -> float:
    return sum(
        one.passage_id in [hit.passage.id for hit in hits[:k]] for one, hits in zip(asked, found, strict=True)
    ) / len(asked)


INDEXES = {"world": world, "world-words": world_words, "wordnet": wordnet}


def main() -> int:
    """Prints the table; there is no bound, since what is gained is the model's doing."""
    options = parser(__doc__)
    options.add_argument("--index", choices=INDEXES, help="only this one (default: all)")
    args = options.parse_args()
    rows = [measure(name, *make()) for name, make in INDEXES.items() if args.index in (None, name)]
    header = (
        "corpus",
        "recall@1",
        "reranked",
        "recall@3",
        "reranked",
        f"recall@{DEPTH}",
        "tokens/pair",
        "ms/query",
        "CPU ms",
    )
    print_table(header, [cells(row) for row in rows])
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.0f}")
    return finish(args, {"indexes": [row._asdict() for row in rows]}, [])


def cells(row: Figures) -> tuple[str, ...]:
    recalls = [f"{figure:.2f}" for pair in (row.recall_1, row.recall_3) for figure in pair]
    times = (f"{row.pairs_tokens:.0f}", f"{row.ms_a_query:.0f}", f"{row.cpu_ms_a_query:.0f}")
    return row.name, *recalls, f"{row.first_depth:.2f}", *times


if __name__ == "__main__":
    sys.exit(main())
