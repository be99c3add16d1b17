"""Builds a Retriever from flags: chooses the files and the backend, and checks that they belong together."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.downloaded import index_file
from local_dense_retriever.errors import InputError, needing
from local_dense_retriever.flat_file import read_flat_header, require_flat
from local_dense_retriever.machine import fast_in_half_precision
from local_dense_retriever.milvus_index import MilvusIndex
from local_dense_retriever.notes import check_belongs, read_note
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import DenseSearcher, HybridSearcher, Searcher, VectorIndex

Report = Callable[[str], None]  # called with what is being loaded
FILE_FLAGS = ("faiss_gpu", "in_memory", "rescore_path")  # for a FAISS file only
FAISS_FLAGS = (*FILE_FLAGS, "nprobe", "ef_search")  # not for exact search
BACKENDS = ("auto", "exact", "faiss", "milvus", "bm25", "hybrid")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    add, model = parser.add_argument, "intfloat/e5-base-v2"
    add("--retriever_name", default="e5", help="prefixes and pooling: e5, bge or minilm (default: e5)")
    add("--retriever_model", default=model, help=f"model folder, or name on the Hugging Face hub (default: {model})")


def add_milvus_arguments(parser: argparse.ArgumentParser, uri_group: argparse._ActionsContainer | None = None) -> None:
    """Adds the Milvus flags. The token comes from the environment (milvus_index.py)."""
    (uri_group or parser).add_argument(
        "--milvus_uri",
        help="URL of a Milvus cluster, or a milvus-lite file ending in .db; MILVUS_TOKEN holds its token",
    )
    collection = "name of the Milvus collection (default: passages)"
    parser.add_argument("--milvus_collection", default="passages", help=collection)


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that load_retriever() reads."""
    add = parser.add_argument
    add("--index_path", help="FAISS index file, or folder of a BM25 index; one row per passage")
    add_milvus_arguments(parser)
    add("--corpus_path", required=True, help="jsonl file, one passage a line")
    add_encoder_arguments(parser)
    add(
        "--index_backend",
        choices=BACKENDS,
        default="auto",
        help="exact: flat index, with torch; faiss: any FAISS file; milvus: --milvus_uri; bm25: words; hybrid: vectors "
        "combined with --bm25_path; auto: chosen by the other flags (default: auto)",
    )
    add("--bm25_path", help="folder of a BM25 index, for --index_backend hybrid")
    add("--faiss_gpu", action="store_true", help="FAISS keeps the index in fp16 on all visible GPUs")
    add("--in_memory", action="store_true", help="FAISS reads the file instead of mapping it")
    add("--rescore_path", help="flat index that rescores the hits of a compressed one")
    add("--nprobe", type=int, help="lists of an IVF index to search (default: the file's, mostly 1)")
    add("--ef_search", type=int, help="breadth of the search in an HNSW index (default: the file's)")
    add("--reranker", help="cross-encoder that reranks the hits: model folder or name")
    add("--rerank_depth", type=int, default=32, help="passages per query to rerank (default: 32)")


def load_retriever(args: argparse.Namespace, report: Report) -> Retriever:
    """Loads what the flags name, reporting each part first. Raises InputError if a part is missing or does not fit."""
    index_path = _index_path(args)
    for file in (Path(args.corpus_path), index_path):  # checked first: loading one may take minutes
        if file and not file.exists():
            raise InputError(f"there is no file {file}: build the index with build_index.py, or correct the path")
    backend = choose_backend(args, index_path)
    report(f"the corpus {args.corpus_path}")
    corpus = Corpus(args.corpus_path)
    for given in filter(None, (args.index_path, args.bm25_path, args.rescore_path)):
        path = index_file(given)
        check_belongs(path, read_note(path), corpus, args.retriever_name)
    if args.rerank_depth < 1:
        raise InputError(f"--rerank_depth is {args.rerank_depth}; it must be at least 1")
    searcher = _load_searcher(args, backend, corpus, report)
    if not args.reranker:
        return Retriever(searcher, corpus)
    report(f"the reranker {args.reranker}")
    with needing("--reranker", install="torch transformers"):
        from local_dense_retriever.reranker import CrossEncoder, Reranker
    return Retriever(searcher, corpus, Reranker(CrossEncoder(args.reranker), args.rerank_depth))


def _index_path(args: argparse.Namespace) -> Path | None:
    """The index's path; None if the vectors are in Milvus."""
    if bool(args.index_path) == bool(args.milvus_uri):
        raise InputError("give the index: either --index_path (a file or folder) or --milvus_uri")
    return index_file(args.index_path) if args.index_path else None


def choose_backend(args: argparse.Namespace, index_path: Path | None) -> str:
    """The backend's name, not "auto". Raises InputError if flags and files contradict each other."""
    backend = args.index_backend
    if backend == "auto" and index_path and index_path.is_dir():
        backend = "bm25"
    elif backend == "auto":
        backend = "hybrid" if args.bm25_path else _vector_backend(args, index_path)
    if backend == "milvus" and index_path:
        raise InputError("--index_backend milvus needs --milvus_uri instead of --index_path")
    if index_path is None and backend not in ("milvus", "hybrid"):
        raise InputError(f"--milvus_uri is for Milvus, and --index_backend is {backend}: leave one of them out")
    if backend == "hybrid" and not args.bm25_path:
        raise InputError("hybrid search needs --bm25_path too: make one with build_index.py --index_type BM25")
    if backend != "hybrid" and args.bm25_path:
        raise InputError(f"--bm25_path is for hybrid search, and --index_backend is {backend}: leave one of them out")
    flag = _given(args, FILE_FLAGS) if index_path is None else _given(args, FAISS_FLAGS) if backend == "exact" else None
    if flag:
        raise InputError(f"{flag} is for FAISS: leave it out, or give --index_backend faiss")
    return backend


def _vector_backend(args: argparse.Namespace, index_path: Path | None) -> str:
    if index_path is None:
        return "milvus"
    if _given(args, FAISS_FLAGS) or read_flat_header(index_path) is None or not fast_in_half_precision():
        return "faiss"
    return "exact"


def _given(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """The first of these flags that is given."""
    return next((f"--{name}" for name in names if getattr(args, name) not in (None, False)), None)


def _load_searcher(args: argparse.Namespace, backend: str, corpus: Corpus, report: Report) -> Searcher:
    if backend == "bm25":
        return _load_bm25(args.index_path, report)
    if backend == "hybrid":
        dense = _load_searcher(args, _vector_backend(args, _index_path(args)), corpus, report)
        return HybridSearcher(dense, _load_bm25(args.bm25_path, report))
    report(f"the index {args.index_path or args.milvus_uri}")
    index = _load_vectors(args, backend, corpus)
    report(f"the encoder {args.retriever_model}")
    from local_dense_retriever.encoder_choice import load_encoder  # late, as others here: torch and FAISS take seconds

    return DenseSearcher(load_encoder(args.retriever_name, args.retriever_model), index)


def _load_bm25(path: str, report: Report) -> Searcher:
    report(f"the index {path}")
    with needing("BM25", install="bm25s"):
        from local_dense_retriever.bm25 import Bm25Searcher
    return Bm25Searcher(path)


def _load_vectors(args: argparse.Namespace, backend: str, corpus: Corpus) -> VectorIndex:
    if backend == "exact":
        from local_dense_retriever.exact_index import ExactIndex

        return ExactIndex(args.index_path)
    settings = {"nprobe": args.nprobe, "ef_search": args.ef_search}
    if backend == "milvus":
        stored = MilvusIndex(args.milvus_uri, args.milvus_collection, **settings)
        check_belongs(stored.about.path, stored.note, corpus, args.retriever_name)
        return stored
    from local_dense_retriever.faiss_index import FaissIndex, RescoredIndex

    index = FaissIndex(args.index_path, use_gpu=args.faiss_gpu, in_memory=args.in_memory, **settings)
    if not args.rescore_path:
        return index
    return RescoredIndex(index, require_flat(args.rescore_path, "--rescore_path"))
