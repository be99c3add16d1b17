"""From flags to a Retriever: which files, which backend, and whether they belong together."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.downloaded import index_file
from local_dense_retriever.errors import InputError
from local_dense_retriever.index_note import check_belongs
from local_dense_retriever.retriever import Retriever

if TYPE_CHECKING:  # torch and FAISS take seconds to import: only when something is loaded
    from local_dense_retriever.searcher import DenseSearcher, Searcher, VectorIndex

BACKENDS = ("auto", "exact", "faiss", "bm25", "hybrid")


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retriever_name", default="e5", help="prefixes and pooling: e5, bge or minilm (default: e5)")
    parser.add_argument(
        "--retriever_model",
        default="intfloat/e5-base-v2",
        help="model folder, or name on the Hugging Face hub (default: intfloat/e5-base-v2)",
    )


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that load_retriever() reads."""
    parser.add_argument(
        "--index_path", required=True, help="FAISS index file, or folder of a BM25 index; a row per passage"
    )
    parser.add_argument("--corpus_path", required=True, help="jsonl file, one passage a line")
    add_encoder_arguments(parser)
    parser.add_argument(
        "--index_backend",
        choices=BACKENDS,
        default="auto",
        help="exact: a flat index, by torch; faiss: any FAISS file; bm25: words; hybrid: --index_path and --bm25_path "
        "together; auto: by what --index_path is (default: auto)",
    )
    parser.add_argument("--bm25_path", help="folder of a BM25 index, for --index_backend hybrid")
    parser.add_argument("--faiss_gpu", action="store_true", help="FAISS keeps the index in fp16 on all visible GPUs")
    parser.add_argument("--in_memory", action="store_true", help="FAISS reads the file instead of mapping it")
    parser.add_argument("--rescore_path", help="flat index: scores what a compressed one proposes")
    parser.add_argument("--nprobe", type=int, help="lists of an IVF index to search (default: the file's, mostly 1)")
    parser.add_argument("--ef_search", type=int, help="breadth of the search in an HNSW index (default: the file's)")


def load_retriever(args: argparse.Namespace, report: Callable[[str], None]) -> Retriever:
    """Loads what the flags name, calling `report` with each part's name first.

    Raises InputError, in one sentence, if a file is missing or damaged or they do not belong together.
    """
    index_path = index_file(args.index_path)
    for path in (Path(args.corpus_path), index_path):  # before the minutes that loading the other one may take
        if not path.exists():
            raise InputError(f"there is no file {path}: build the index with build_index.py, or correct the path")
    backend = choose_backend(args, index_path)
    report(f"the corpus {args.corpus_path}")
    corpus = Corpus(args.corpus_path)
    check_belongs(index_path, corpus, None if backend == "bm25" else args.retriever_name)
    if args.bm25_path:
        check_belongs(Path(args.bm25_path), corpus, None)
    if args.rescore_path:
        check_belongs(index_file(args.rescore_path), corpus, args.retriever_name)
    return Retriever(_load_searcher(args, backend, report), corpus)


def choose_backend(args: argparse.Namespace, index_path: Path) -> str:
    """The backend's name, not "auto". Raises InputError if flags and files contradict each other."""
    backend = args.index_backend
    if backend == "auto":
        if index_path.is_dir():
            backend = "bm25"
        elif args.bm25_path:
            backend = "hybrid"
        else:
            backend = _vector_backend(args, index_path)
    if backend == "hybrid" and not args.bm25_path:
        raise InputError("hybrid search needs --bm25_path too: make one with build_index.py --index_type BM25")
    if backend != "hybrid" and args.bm25_path:
        raise InputError(f"--bm25_path is for hybrid search, and --index_backend is {backend}: leave one of them out")
    if backend == "exact" and _for_faiss_only(args):
        raise InputError(f"{_for_faiss_only(args)} is for FAISS: leave it out, or give --index_backend faiss")
    return backend


def _vector_backend(args: argparse.Namespace, index_path: Path) -> str:
    from local_dense_retriever.devices import fast_in_half_precision
    from local_dense_retriever.flat_file import read_flat_header

    if _for_faiss_only(args) or read_flat_header(index_path) is None or not fast_in_half_precision():
        return "faiss"
    return "exact"


def _for_faiss_only(args: argparse.Namespace) -> str | None:
    """The first flag given that only FAISS understands."""
    given = {
        "--faiss_gpu": args.faiss_gpu,
        "--in_memory": args.in_memory,
        "--rescore_path": args.rescore_path,
        "--nprobe": args.nprobe is not None,
        "--ef_search": args.ef_search is not None,
    }
    return next((flag for flag, is_given in given.items() if is_given), None)


def _load_searcher(args: argparse.Namespace, backend: str, report: Callable[[str], None]) -> Searcher:
    if backend == "bm25":
        return _load_bm25(args.index_path, report)
    if backend != "hybrid":
        return _load_dense(args, backend, report)
    from local_dense_retriever.hybrid import HybridSearcher

    dense = _load_dense(args, _vector_backend(args, index_file(args.index_path)), report)
    return HybridSearcher(dense, _load_bm25(args.bm25_path, report))


def _load_bm25(path: str, report: Callable[[str], None]) -> Searcher:
    report(f"the index {path}")
    try:
        from local_dense_retriever.bm25 import Bm25Searcher
    except ImportError as error:
        raise InputError("BM25 needs the package bm25s: pip install bm25s") from error
    return Bm25Searcher(path)


def _load_dense(args: argparse.Namespace, backend: str, report: Callable[[str], None]) -> DenseSearcher:
    from local_dense_retriever.searcher import DenseSearcher

    report(f"the index {args.index_path}")
    index = _load_vectors(args, backend)
    report(f"the encoder {args.retriever_model}")
    from local_dense_retriever.encoder import load_encoder

    return DenseSearcher(load_encoder(args.retriever_name, args.retriever_model), index)


def _load_vectors(args: argparse.Namespace, backend: str) -> VectorIndex:
    if backend == "exact":
        from local_dense_retriever.exact_index import ExactIndex

        return ExactIndex(args.index_path)
    from local_dense_retriever.faiss_index import FaissIndex

    index = FaissIndex(
        args.index_path,
        use_gpu=args.faiss_gpu,
        in_memory=args.in_memory,
        nprobe=args.nprobe,
        ef_search=args.ef_search,
    )
    if not args.rescore_path:
        return index
    from local_dense_retriever.flat_file import require_flat
    from local_dense_retriever.rescored_index import RescoredIndex

    return RescoredIndex(index, require_flat(args.rescore_path, "--rescore_path"))
