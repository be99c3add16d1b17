"""Corpus -> embeddings -> a flat FAISS index file, in steps that survive being killed.

    python local_dense_retriever/build_index.py --corpus_path wiki.jsonl --index_path e5_Flat.index

Beside the index file while it is being made (both are removed at the end):

    <index>.partial        the embeddings so far, raw float32, one row of D numbers after the other
    <index>.partial.json   what they were made of, and how many rows are safely on disk

A restart with the same corpus and model continues behind those rows. The index file itself appears only when it is
complete. A flat index takes 4 * D bytes a passage, on disk (twice that for the last step) and in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError

if TYPE_CHECKING:
    from local_dense_retriever.encoder import TextEncoder

# Passages between two notes of progress. Batches never cross its borders, so that they are the same, and the vectors
# too, wherever an earlier run was stopped.
CHUNK_ROWS = 4096


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    try:
        build(args)
    except (InputError, OSError) as error:  # OSError: no permission, disk full, …
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build a flat FAISS index of a jsonl corpus.")
    parser.add_argument("--corpus_path", required=True, help="jsonl file, one passage a line")
    parser.add_argument("--index_path", "--save_path", required=True, help="the index file to write")
    parser.add_argument("--retriever_name", default="e5", help="prefixes and pooling: e5, bge or minilm (default: e5)")
    parser.add_argument(
        "--retriever_model",
        default="intfloat/e5-base-v2",
        help="model folder, or name on the Hugging Face hub (default: intfloat/e5-base-v2)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="passages encoded at a time (default: 64)")
    parser.add_argument("--overwrite", action="store_true", help="build again although the index file exists")
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Writes the index file; raises InputError if something in the arguments is wrong."""
    index_path = Path(args.index_path)
    if index_path.is_dir():
        raise InputError(f"--index_path {index_path} is a folder: give the name of the file to write")
    if index_path.exists() and not args.overwrite:
        print(f"{index_path} exists already; nothing to do (give --overwrite to build it again)")
        return
    if not index_path.parent.is_dir():
        raise InputError(f"there is no folder {index_path.parent} to write the index into: create it first")
    if args.batch_size < 1:
        raise InputError(f"--batch_size is {args.batch_size}; it must be at least 1")

    print(f"reading {args.corpus_path}", flush=True)
    corpus = Corpus(args.corpus_path)
    from local_dense_retriever.encoder import Encoder  # imports torch, which the checks above need not wait for

    encoder = Encoder(args.retriever_name, args.retriever_model, args.batch_size)
    source = {
        "corpus digest": digest(corpus.path),
        "passages": len(corpus),
        "retriever_name": args.retriever_name,
        "retriever_model": args.retriever_model,
        "dim": encoder.dim,
    }
    partial = PartialEmbeddings(index_path, source)
    embed(corpus, encoder, partial)
    write_index(partial, index_path)
    print(f"wrote {index_path}: {len(corpus)} passages, {encoder.dim} numbers each")


def digest(path: Path) -> str:
    """A hash of the file's bytes, in hexadecimal digits. About a second per GB."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


class PartialEmbeddings:
    """The embeddings made so far, in a file that a killed process leaves usable."""

    def __init__(self, index_path: Path, source: dict[str, str | int]) -> None:
        """Continues what an earlier run left of the same source; starts afresh, saying why, if the source differs."""
        self.path = index_path.with_name(index_path.name + ".partial")
        self._note_path = index_path.with_name(index_path.name + ".partial.json")
        self.source = source
        self._row_bytes = int(source["dim"]) * 4
        self.rows_done = self._rows_to_keep()
        with self.path.open("ab") as file:  # creates it; what a killed run wrote after its last note is cut off
            file.truncate(self.rows_done * self._row_bytes)

    def _rows_to_keep(self) -> int:
        if not (self.path.exists() and self._note_path.exists()):
            return 0
        try:
            note = json.loads(self._note_path.read_text())
            changed = [key for key, value in self.source.items() if note["source"][key] != value]
            rows_done = int(note["rows_done"])
        except (ValueError, KeyError, TypeError):
            print(f"starting afresh: {self._note_path} cannot be read")
            return 0
        if changed:
            print(f"starting afresh: the unfinished index was made with another {' and '.join(changed)}")
            return 0
        if self.path.stat().st_size < rows_done * self._row_bytes:
            print(f"starting afresh: {self.path} is shorter than {self._note_path} says")
            return 0
        print(f"continuing an unfinished index: {rows_done} of {self.source['passages']} passages are done")
        return rows_done

    def append(self, vectors: np.ndarray) -> None:
        """Adds (B, D) float32 rows. First the rows reach the disk, then the note that counts them."""
        with self.path.open("ab") as file:
            file.write(vectors.tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.rows_done += len(vectors)
        temporary = self._note_path.with_name(self._note_path.name + ".tmp")
        temporary.write_text(json.dumps({"source": self.source, "rows_done": self.rows_done}, indent=1))
        os.replace(temporary, self._note_path)

    def read(self) -> np.memmap:
        """-> (N, D) float32, on disk."""
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=(self.rows_done, int(self.source["dim"])))

    def remove(self) -> None:
        self._note_path.unlink()
        self.path.unlink()


def embed(corpus: Corpus, encoder: TextEncoder, partial: PartialEmbeddings) -> None:
    """Encodes the passages that `partial` lacks, chunk after chunk."""
    with tqdm(total=len(corpus), initial=partial.rows_done, unit=" passages") as progress:
        while partial.rows_done < len(corpus):
            rows = range(partial.rows_done, min(partial.rows_done + CHUNK_ROWS, len(corpus)))
            partial.append(encoder.encode_passages([passage.contents for passage in corpus.passages(rows)]))
            progress.update(len(rows))


def write_index(partial: PartialEmbeddings, index_path: Path) -> None:
    """Writes the finished embeddings as a flat inner-product index, and removes the partial files."""
    import faiss

    vectors = partial.read()  # (N, D)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # in one call: FAISS then allocates exactly what it needs
    temporary = index_path.with_name(index_path.name + ".tmp")
    try:
        faiss.write_index(index, str(temporary))
    except RuntimeError as error:
        raise InputError(f"cannot write {temporary}: is the disk full? Run the same command again to go on") from error
    os.replace(temporary, index_path)
    partial.remove()


if __name__ == "__main__":
    sys.exit(main())
