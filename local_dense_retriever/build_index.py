"""Build an index of a corpus; a killed build continues where it stopped.

    python local_dense_retriever/build_index.py --corpus_path wiki.jsonl --index_path e5_Flat.index
    python local_dense_retriever/build_index.py --from_index e5_Flat.index --index_path e5_SQ8.index --index_type SQ8
    python local_dense_retriever/build_index.py --append more.jsonl --corpus_path wiki.jsonl --index_path e5_Flat.index
    python local_dense_retriever/build_index.py --from_index e5_Flat.index --milvus_uri http://milvus:19530

An unfinished index consists of two files:

    <index>.partial        the flat index so far: its header, then one row of D float32 per passage
    <index>.partial.json   what the index is made from, and how many rows are safely on disk

The same command, run again, continues after those rows. The finished flat index is the first file renamed, so there is
never a second copy. Other types are converted from it at the end, or from a finished flat index with --from_index.
appending.py adds passages to a corpus and its flat index.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.appending import append
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.embedding import PartialEmbeddings, embed, load_named_encoder
from local_dense_retriever.errors import InputError, needing, run_command
from local_dense_retriever.files import beside
from local_dense_retriever.flat_file import FlatFile, require_flat
from local_dense_retriever.loading import add_encoder_arguments, add_milvus_arguments
from local_dense_retriever.milvus_fill import fill
from local_dense_retriever.notes import IndexNote, publish, read_note, write_note


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build an index of a jsonl corpus, or convert a flat index.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus_path", help="jsonl file, one passage a line")
    source.add_argument("--from_index", help="a flat index to convert to --index_type; nothing is encoded")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--index_path", "--save_path", help="the file to write; a folder for BM25")
    add_milvus_arguments(parser, target)
    add = parser.add_argument
    add(
        "--index_type",
        default="Flat",
        help="Flat, BM25, or a FAISS factory string such as SQ8, IVF4096,SQ8 or HNSW32; in Milvus its own names, such "
        "as DISKANN or HNSW,M=32,efConstruction=200 (default: Flat)",
    )
    add_encoder_arguments(parser)
    add("--batch_size", type=int, help="passages encoded at a time (default: 64 by torch, 16 by onnxruntime)")
    add("--append", metavar="FILE", help="jsonl file of new passages: adds them to --corpus_path and its flat index")
    add("--overwrite", action="store_true", help="build again although the index exists")
    args = parser.parse_args(argv)
    return run_command(lambda: build(args))


def build(args: argparse.Namespace) -> None:
    """Writes the index; raises InputError if something in the arguments is wrong."""
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch_size is {args.batch_size}; it must be at least 1")
    if args.milvus_uri:
        return fill(args)
    if args.append:
        return append(args)
    index_path = Path(args.index_path)
    if index_path.is_dir() and args.index_type != "BM25":
        raise InputError(f"--index_path {index_path} is a folder: give the name of the file to write")
    if index_path.exists() and not args.overwrite:
        print(f"{index_path} exists already; nothing to do (give --overwrite to build it again)")
        return
    source = Path(args.corpus_path or args.from_index)
    if source.exists() and index_path.exists() and index_path.samefile(source):
        raise InputError(f"--index_path {index_path} is also the input: give another name")
    if not index_path.parent.is_dir():
        raise InputError(f"there is no folder {index_path.parent} to write the index into: create it first")
    if args.from_index:
        convert(args, index_path)
    elif args.index_type == "BM25":
        build_words(args, index_path)
    else:
        build_vectors(args, index_path)


def build_vectors(args: argparse.Namespace, index_path: Path) -> None:
    """Encodes the corpus, into a flat index file first."""
    corpus = Corpus(args.corpus_path)
    encoder, note = load_named_encoder(args, corpus)
    if args.index_type != "Flat":
        from local_dense_retriever.faiss_index import empty_index

        empty_index(args.index_type, note.dim)  # refused now rather than after hours of encoding
    with PartialEmbeddings(index_path, note) as partial:
        embed(corpus, encoder, partial, args)
        flat = partial.finish()
        if args.index_type == "Flat":
            publish(flat.path, index_path, note)
        else:
            _write_converted(flat, index_path, args.index_type, note)
            flat.path.unlink()
        partial.forget()
    print(f"wrote {index_path}: {note.rows} passages, {note.dim} numbers each, {args.index_type}")


def convert(args: argparse.Namespace, index_path: Path) -> None:
    flat = require_flat(args.from_index, "--from_index")
    if args.index_type in ("Flat", "BM25"):
        raise InputError(f"--index_type {args.index_type} cannot be made from a flat index: give another, such as SQ8")
    old = read_note(flat.path)
    _write_converted(flat, index_path, args.index_type, old and old._replace(index_type=args.index_type))
    print(f"wrote {index_path}: {flat.rows} passages, {flat.dim} numbers each, {args.index_type}")


def build_words(args: argparse.Namespace, index_path: Path) -> None:
    with needing("--index_type BM25", install="bm25s"):
        from local_dense_retriever.bm25 import build_bm25, check_replaceable
    check_replaceable(index_path)
    corpus = Corpus(args.corpus_path)
    print(f"counting the words of {corpus.path}", flush=True)
    build_bm25((passage.contents for passage in corpus), index_path)
    write_note(index_path, IndexNote(corpus.digest, len(corpus), 0, "", "", "BM25"))
    print(f"wrote {index_path}: {len(corpus)} passages, BM25")


def _write_converted(flat: FlatFile, index_path: Path, index_type: str, note: IndexNote | None) -> None:
    from local_dense_retriever.faiss_index import write_converted

    temporary = beside(index_path, ".tmp")
    write_converted(flat, temporary, index_type)
    publish(temporary, index_path, note)


if __name__ == "__main__":
    sys.exit(main())
