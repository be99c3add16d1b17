"""The flags that say what to serve, and the retriever made from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.retriever import Retriever


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index_path", required=True, help="FAISS index file, one row per passage of the corpus")
    parser.add_argument("--corpus_path", required=True, help="jsonl file, one passage a line")
    parser.add_argument("--retriever_name", default="e5", help="prefixes and pooling: e5, bge or minilm (default: e5)")
    parser.add_argument(
        "--retriever_model",
        default="intfloat/e5-base-v2",
        help="model folder, or name on the Hugging Face hub (default: intfloat/e5-base-v2)",
    )
    parser.add_argument("--faiss_gpu", action="store_true", help="keep the index in fp16 on all visible GPUs")


def load_retriever(args: argparse.Namespace, report: Callable[[str], None]) -> Retriever:
    """Loads corpus, encoder and index, and checks that they belong together; `report` hears what is being loaded.

    Raises InputError if a file is missing or broken, or if they do not belong together.
    """
    for path in (args.corpus_path, args.index_path):  # before the minutes that loading the other one may take
        if not Path(path).is_file():
            raise InputError(f"there is no file {path}: build the index with build_index.py, or correct the path")
    report(f"the encoder {args.retriever_model}")
    # Here and not above, because torch and FAISS take seconds to import.
    from local_dense_retriever.encoder import Encoder
    from local_dense_retriever.index import PassageIndex

    encoder = Encoder(args.retriever_name, args.retriever_model)
    report(f"the index {args.index_path}")
    index = PassageIndex(args.index_path, use_gpu=args.faiss_gpu)
    report(f"the corpus {args.corpus_path}")
    return Retriever(encoder, index, Corpus(args.corpus_path))
