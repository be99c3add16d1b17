"""Checks an index: loads it like the server, and runs searches with known results.

    python local_dense_retriever/verify.py --index_path e5_SQ8.index --corpus_path wiki.jsonl --flat_index e5_Flat.index

Prints one line per check; the exit code is 1 if one fails. Loading compares rows, passages, dimension and encoder.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.downloaded import index_file
from local_dense_retriever.encoder import Encoder
from local_dense_retriever.errors import InputError, run_command
from local_dense_retriever.flat_file import read_flat_header, require_flat
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.milvus_index import MilvusIndex
from local_dense_retriever.retriever import Retriever

MOST_NORM_ERROR = 0.01  # fp16 on the machine that built it
LEAST_COSINE = 0.99  # between a stored vector and the same passage encoded here
LEAST_FOUND = 0.9  # share of passages found by their own text; duplicates hide some
LEAST_RECALL = 0.9


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check an index against its corpus, its encoder and exact search.")
    add_index_arguments(parser)
    parser.add_argument("--flat_index", help="flat index of the same vectors: exact search in it is the reference")
    parser.add_argument("--queries_path", help="text file, one query per line (default: passages of the corpus)")
    parser.add_argument("--sample", type=int, default=200, help="passages and queries to try (default: 200)")
    parser.add_argument("--topk", type=int, default=3, help="the k of recall@k (default: 3)")
    args = parser.parse_args(argv)
    return run_command(lambda: int(not all(list(verify(args)))))  # a list: after a check that fails, the others run too


def verify(args: argparse.Namespace) -> Iterator[bool]:
    """Runs the checks one by one: does it hold? Raises InputError if the files cannot be loaded together."""
    if args.sample < 1 or args.topk < 1:
        raise InputError("--sample and --topk must be at least 1")
    retriever = _load(args)
    about = retriever.describe()
    yield said(True, f"{about['rows']} rows, as many as the corpus has passages; {about['backend']}")

    corpus = Corpus(args.corpus_path)
    rows = np.random.default_rng(0).choice(len(corpus), min(args.sample, len(corpus)), replace=False)
    texts = [passage.contents for passage in corpus.passages(rows.tolist())]
    yield known_answers(retriever, texts, args.topk)

    stored = stored_rows(args, rows)
    if stored is not None:
        from local_dense_retriever.encoder_choice import load_encoder

        yield from stored_vectors(stored, rows, texts, load_encoder(args.retriever_name, args.retriever_model))
    if args.flat_index:
        exact = argparse.Namespace(**vars(args) | {"index_path": args.flat_index, "index_backend": "exact"})
        for flag in ("bm25_path", "milvus_uri", "rescore_path", "faiss_gpu", "in_memory", "nprobe", "ef_search"):
            setattr(exact, flag, None)
        yield recall(retriever, _load(exact), read_queries(args, texts), args.topk)
    else:
        print("recall is not measured: give --flat_index to compare with exact search")


def said(held: bool, text: str) -> bool:
    print(f"{'ok  ' if held else 'FAIL'} {text}", flush=True)
    return held


def _load(args: argparse.Namespace) -> Retriever:
    return load_retriever(args, lambda what: print(f"loading {what}", flush=True))


def stored_rows(args: argparse.Namespace, rows: np.ndarray) -> np.ndarray | None:
    """(N, D) float32, the vectors of these rows; None if no uncompressed copy is available."""
    if args.milvus_uri:
        return MilvusIndex(args.milvus_uri, args.milvus_collection).vectors(rows.tolist())
    if args.flat_index:
        return np.array(require_flat(args.flat_index, "--flat_index").vectors()[rows])
    index_path = index_file(args.index_path)
    flat = read_flat_header(index_path) if index_path.is_file() else None
    return np.array(flat.vectors()[rows]) if flat else None


def known_answers(retriever: Retriever, texts: Sequence[str], topk: int) -> bool:
    """Each passage should be found by its own text."""
    found = zip(texts, retriever.search(texts, topk), strict=True)
    share = float(np.mean([text in (hit.passage.contents for hit in hits) for text, hits in found]))
    hits = f"among the first {topk} hits for their own text (at least {LEAST_FOUND})"
    return said(share >= LEAST_FOUND, f"{share:.3f} of {len(texts)} passages are {hits}")


def stored_vectors(stored: np.ndarray, rows: np.ndarray, texts: Sequence[str], encoder: Encoder) -> Iterator[bool]:
    """Checks that the stored vectors have length 1 and match the passages of their rows."""
    error = float(np.abs(np.linalg.norm(stored, axis=1) - 1).max())
    text = f"stored vectors have length 1, give or take {error:.1e} (at most {MOST_NORM_ERROR})"
    yield said(error <= MOST_NORM_ERROR, text)
    cosines = (stored * encoder.encode_passages(texts)).sum(axis=1)
    worst = int(cosines.argmin())
    yield said(
        bool(cosines[worst] >= LEAST_COSINE),
        f"stored vectors match their passages: cosine {cosines.mean():.4f} on average, "
        f"{cosines[worst]:.4f} at worst, in row {rows[worst]} (at least {LEAST_COSINE})",
    )


def read_queries(args: argparse.Namespace, texts: Sequence[str]) -> Sequence[str]:
    if not args.queries_path:
        return texts
    queries = [line.strip() for line in Path(args.queries_path).read_text(encoding="utf-8").splitlines()]
    queries = [query for query in queries if query][: args.sample]
    if not queries:
        raise InputError(f"--queries_path {args.queries_path} has no queries: write one per line")
    return queries


def recall(retriever: Retriever, exact: Retriever, queries: Sequence[str], topk: int) -> bool:
    """The share of exact search's hits that this index finds too."""
    shares = []
    for found, truth in zip(retriever.search(queries, topk), exact.search(queries, topk), strict=True):
        ids = {hit.passage.id for hit in found}
        shares.append(np.mean([hit.passage.id in ids for hit in truth]))
    share = float(np.mean(shares))
    text = f"recall@{topk} {share:.3f} over {len(queries)} queries (at least {LEAST_RECALL})"
    return said(share >= LEAST_RECALL, text)


if __name__ == "__main__":
    sys.exit(main())
