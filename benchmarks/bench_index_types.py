"""Which index to take: bytes, time and recall of FAISS's types over real embeddings.

    python -m benchmarks.bench_index_types [--json FILE]

117,791 definitions of WordNet and 1,000 of its example sentences as queries, encoded by MiniLM (384 numbers). Each type
is built by the index builder's own code and loaded as the server does. Vectors and indexes are made once, in
.cache/wordnet; stopped, that goes on where it was. Recall is against exact search in float32. Queries/s at batch 64.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting import CACHE, Report, parser, run
from benchmarks.wordnet_corpus import write_wordnet
from demo.models import encoder_folder
from demo.retriever_process import build_index
from local_dense_retriever.encoder_choice import load_encoder
from local_dense_retriever.exact_index import ExactIndex
from local_dense_retriever.faiss_index import FaissIndex, RescoredIndex, write_converted
from local_dense_retriever.flat_file import FlatFile, require_flat
from local_dense_retriever.searcher import VectorIndex

FOLDER = CACHE / "wordnet"
QUERIES, BATCH = 1000, 64
SMALL = 1 / 8  # at least one type as small as this finds as much
TYPES = (
    *("SQfp16", "SQ8", "RaBitQ4", "SQ4", "RaBitQ", "PQ48"),
    *("IVF1024,Flat", "IVF1024,SQ8", "IVF1024,RaBitQ", "HNSW32", "HNSW32_SQ8"),
)
RESCORED = ("RaBitQ", "PQ48", "IVF1024,RaBitQ")  # once more, by the flat file, which stays on disk
SETTINGS: dict[str, dict[str, Any]] = {"IVF": {"nprobe": 32}, "HNSW": {"ef_search": 128}}  # of these families


def embeddings() -> tuple[FlatFile, NDArray[np.float32]]:
    """The passages' vectors, made once, and the (QUERIES, D) of the queries."""
    files, model = write_wordnet(FOLDER), encoder_folder()
    build_index(files.corpus, FOLDER / "flat.index", model)
    lines = files.queries.read_text().splitlines()
    chosen = np.random.default_rng(0).choice(len(lines), QUERIES, replace=False)
    queries = load_encoder("minilm", str(model)).encode_queries([lines[i] for i in chosen])
    return require_flat(FOLDER / "flat.index", "the index"), queries


def built(flat: FlatFile, index_type: str) -> tuple[Path, float]:
    """The index of this type, and the seconds that making it took; made once."""
    path = FOLDER / f"{index_type.replace(',', '_')}.index"
    seconds = path.with_suffix(".seconds")
    if not seconds.exists():
        began = time.perf_counter()
        write_converted(flat, path, index_type)
        seconds.write_text(str(time.perf_counter() - began))
    return path, float(seconds.read_text())


def measured(name: str, build_s: float, index: VectorIndex, queries: NDArray, truth: NDArray) -> dict[str, Any]:
    """A row of the table."""
    index.search(queries[:BATCH], 10)  # pages and threads are warm
    began = time.perf_counter()
    found = np.concatenate([index.search(queries[i : i + BATCH], 10).rows for i in range(0, QUERIES, BATCH)])
    rate = QUERIES / (time.perf_counter() - began)
    size = Path(index.about.path).stat().st_size / index.about.rows
    row = {"type": name, "bytes/vector": size, "of flat": size / (4 * queries.shape[1]), "build s": build_s}
    return {**row, "queries/s": rate, "recall@3": recall(found, truth, 3), "recall@10": recall(found, truth, 10)}


def recall(found: NDArray, truth: NDArray, k: int) -> float:
    """The share of the k true neighbours among the first k found."""
    return float(np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found, truth, strict=True)]))


def measure(report: Report) -> None:
    """A row for each type, compared with exact search in float32."""
    flat, queries = embeddings()
    truth = np.argsort(-(queries @ flat.read(0, flat.rows).T), axis=1)[:, :10]
    rows = [
        measured("Flat (FAISS)", 0.0, FaissIndex(flat.path), queries, truth),
        measured("Flat (exact, torch)", 0.0, ExactIndex(flat.path), queries, truth),
    ]
    for index_type in TYPES:
        path, build_s = built(flat, index_type)
        settings = next((SETTINGS[family] for family in SETTINGS if index_type.startswith(family)), {})
        index = FaissIndex(path, **settings)
        name = ", ".join([index_type, *(f"{setting} {value}" for setting, value in settings.items())])
        rows.append(measured(name, build_s, index, queries, truth))
        if index_type in RESCORED:
            rows.append(measured(f"{name}, rescored", build_s, RescoredIndex(index, flat), queries, truth))
    report.table("which index", rows)
    best = max((row["recall@3"] for row in rows if row["of flat"] <= SMALL), default=0.0)
    report.bound("recall@3 {} at 1/8 of flat or less", best, least=0.95)


if __name__ == "__main__":
    run(measure, parser(__doc__))
