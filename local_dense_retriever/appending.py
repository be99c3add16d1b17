"""Appends passages to a corpus and its flat index, encoding only the new ones.

    python local_dense_retriever/build_index.py --append more.jsonl --corpus_path wiki.jsonl --index_path e5_Flat.index

1  write <corpus>.appended: the corpus followed by the new passages, checked line by line
2  write <index>.partial: copy the old vectors, encode the new passages (embedding.py)
3  rename both files to their final names, the corpus first

Corpus and index do not change until step 3, so a server may keep using them. Running the same command again continues
a killed append, or reports that nothing is left to do. The result is byte for byte the index that would be built from
the longer corpus with the same --batch_size: no batch crosses a chunk's border, so encoding starts at the last border.
"""

import argparse
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from local_dense_retriever import embedding
from local_dense_retriever.corpus import Corpus, offsets_path
from local_dense_retriever.downloaded import accept_size, index_file
from local_dense_retriever.embedding import PROGRESS, PartialEmbeddings, embed, fill, load_named_encoder
from local_dense_retriever.encoder import Encoder
from local_dense_retriever.errors import InputError
from local_dense_retriever.files import beside, lock, partial, sync
from local_dense_retriever.flat_file import HEADER, FlatFile, read_flat_header
from local_dense_retriever.notes import IndexNote, read_note, write_note

LONGER = ".appended"  # ends the name of the longer corpus until it replaces the old one
COPY_ROWS = 65_536  # vectors copied between two progress notes
COPY_BYTES = 1 << 24  # bytes of the corpus copied at a time
KNOWN_ROWS = 32  # old passages encoded again to check that the encoder is the index's
LEAST_COSINE = 0.99  # minimum, between the stored and the new vector of such a passage


def append(args: argparse.Namespace) -> None:
    """Adds the passages of args.append to corpus and index. Raises InputError if they cannot be added."""
    if not args.corpus_path or args.overwrite or args.index_type != "Flat":
        raise InputError("--append needs --corpus_path; leave out --from_index, --index_type and --overwrite")
    corpus_path, index_path = Path(args.corpus_path).resolve(), index_file(args.index_path).resolve()
    if not corpus_path.is_file():
        raise InputError(f"there is no corpus file {args.corpus_path}: check --corpus_path")
    with only_append_to(corpus_path) as copy:
        old, note = appendable(index_path, args)
        corpus, more = Corpus(corpus_path), Corpus(args.append)
        is_new = lacks(corpus, more)
        check_fits(old, note, corpus, more, is_new)
        if not is_new and old.rows == len(corpus):
            tidy(corpus_path, index_path)
            print(f"nothing to do: {corpus_path} and {index_path} already have these {len(more)} passages")
            return
        check_space(corpus, more, old, is_new)
        longer = write_longer(corpus, more, copy) if is_new else corpus
        extend(args, old, longer, corpus_path)
        tidy(corpus_path, index_path)
    print(f"appended {len(longer) - old.rows} passages: {corpus_path} and {index_path} now have {len(longer)}")
    print("restart the servers that use them: they serve the old files until then")
    report_outdated(args, index_path, corpus_path, note)


@contextmanager
def only_append_to(corpus_path: Path) -> Iterator[IO[bytes]]:
    """Opens <corpus>.appended, locked against other appends, and removes it at the end if it is empty."""
    path = beside(corpus_path, LONGER)
    with path.open("ab") as file:
        if not lock(file, path):
            raise InputError(f"another --append to {corpus_path} is running: let it finish, or stop it")
        try:
            yield file
        finally:
            if path.exists() and path.stat().st_size == 0:
                path.unlink()


def appendable(index_path: Path, args: argparse.Namespace) -> tuple[FlatFile, IndexNote | None]:
    """The index and its note. Raises InputError, with the remedy, if it is not a flat one or is another encoder's."""
    if not index_path.exists():
        raise InputError(f"there is no index {index_path} to append to: build it first, or correct --index_path")
    if index_path.is_dir():
        raise InputError(
            f"{index_path} is a BM25 index, which cannot grow: --append to the flat index of the same corpus (or add "
            "the lines to the corpus yourself), then build this one again with --overwrite"
        )
    flat, note = read_flat_header(index_path), read_note(index_path)
    if flat is None:
        raise InputError(
            f"{index_path} is compressed and cannot grow: --append to the flat index it was made from, then convert "
            "that again with --from_index and --overwrite"
        )
    if note and (note.retriever_name, note.retriever_model) != (args.retriever_name, args.retriever_model):
        raise InputError(
            f"the index {index_path} was built with --retriever_name {note.retriever_name} --retriever_model "
            f"{note.retriever_model}: give the same (if that model has moved, correct its path in {index_path}.json)"
        )
    return flat, note


def lacks(corpus: Corpus, more: Corpus) -> bool:
    """True if the corpus has none of these passages, False if it has all of them with the same text.

    Raises InputError if `more` repeats an id, if the corpus has one of its ids with another text, or if it has only
    some of the passages.
    """
    rows: dict[str, int] = {}
    for row, passage in enumerate(more):
        if rows.setdefault(passage.id, row) != row:
            raise InputError(f"{more.path} has the id {passage.id} twice: give each passage its own id")
    found: set[int] = set()
    for passage in tqdm(corpus, total=len(corpus), unit=" passages", desc="comparing ids", delay=2):
        row = rows.get(passage.id, -1)
        if row >= 0:
            if more.passages([row])[0] != passage:
                raise InputError(
                    f"{corpus.path} has another passage with the id {passage.id}: give the new one its own"
                )
            found.add(row)
    if found and len(found) < len(rows):
        example = more.passages([min(found)])[0].id
        raise InputError(
            f"{len(found)} of the {len(rows)} passages of {more.path} are already in {corpus.path}, such as {example}: "
            "leave them out"
        )
    return not found


def check_fits(old: FlatFile, note: IndexNote | None, corpus: Corpus, more: Corpus, is_new: bool) -> None:
    """Raises InputError unless the index was built from this corpus, with or without `more` at its end."""
    if old.rows == len(corpus):
        fits = note is None or note.corpus_digest == corpus.digest
    elif is_new or old.rows > len(corpus):
        fits = False
    elif note is None:
        fits = old.rows == len(corpus) - len(more)
    else:  # step 3 writes the note before it touches the index
        fits = note.corpus_digest == corpus.digest or corpus.begins_with(old.rows, note.corpus_digest)
    if not fits:
        raise InputError(
            f"the index {old.path} ({old.rows} rows) was not made from {corpus.path} ({len(corpus)} passages): finish "
            "an interrupted --append with its own file first, or build the index again"
        )


def check_space(corpus: Corpus, more: Corpus, old: FlatFile, is_new: bool) -> None:
    """Raises InputError if the disk has no room for the old and the new files together."""
    rows = len(corpus) + len(more) * is_new
    needed = {old.path: HEADER.size + rows * old.dim * 4 - _size(partial(old.path))}
    if is_new:
        sizes = corpus.start(len(corpus)) + more.start(len(more)) + 8 * rows  # the last term: offsets
        needed[corpus.path] = sizes - _size(beside(corpus.path, LONGER))
    for path in needed:
        disk = path.stat().st_dev
        free = shutil.disk_usage(path.parent).free
        need = sum(size for other, size in needed.items() if other.stat().st_dev == disk)
        if free < need:
            raise InputError(
                f"{path.parent} has {free / 1e9:.1f} GB free and --append needs {need / 1e9:.1f} GB, because it keeps "
                "the old files until the new ones are complete: make room, then run the same command again"
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_known_rows(encoder: Encoder, old: FlatFile, corpus: Corpus) -> None:
    """Raises InputError if the encoder's vectors for the last old passages differ from those in the index."""
    rows = range(max(0, old.rows - KNOWN_ROWS), old.rows)
    made = encoder.encode_passages([passage.contents for passage in corpus.passages(rows)])
    stored = old.read(rows.start, rows.stop)
    if made.shape != stored.shape:
        raise InputError(
            f"the index {old.path} has vectors of dimension {old.dim}, but the encoder makes {made.shape[1]}"
        )
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(stored, axis=1)
    cosines = (made * stored).sum(axis=1) / np.maximum(lengths, 1e-9)
    if not (worst := float(cosines.min())) >= LEAST_COSINE:
        raise InputError(
            f"the encoder does not make the vectors in {old.path} (cosine {worst:.3f} for passage number "
            f"{rows[int(cosines.argmin())] + 1}): give the --retriever_name and --retriever_model it was built with"
        )


def write_longer(corpus: Corpus, more: Corpus, copy: IO[bytes]) -> Corpus:
    """Writes <corpus>.appended, and checks every line of it."""
    print(f"copying {corpus.path} and {len(more)} new passages", flush=True)
    copy.truncate(0)  # discards what a killed run left
    with corpus.path.open("rb") as old:
        shutil.copyfileobj(old, copy, COPY_BYTES)
        old.seek(-1, os.SEEK_END)
        if old.read() != b"\n":
            copy.write(b"\n")
    with more.path.open("rb") as new:
        new.seek(more.start(0))
        shutil.copyfileobj(new, copy, COPY_BYTES)
    sync(copy)
    return Corpus(beside(corpus.path, LONGER))


def extend(args: argparse.Namespace, old: FlatFile, longer: Corpus, corpus_path: Path) -> None:
    """Builds the index of the longer corpus and renames both files to their final names."""
    encoder, note = load_named_encoder(args, longer)
    check_known_rows(encoder, old, longer)
    with PartialEmbeddings(old.path, note) as unfinished:
        # The old vectors up to the last chunk border; after it, the new passages change the batches.
        stop = old.rows // embedding.CHUNK_ROWS * embedding.CHUNK_ROWS
        fill(unfinished, old.blocks(unfinished.rows_done, stop, COPY_ROWS), stop)
        embed(longer, encoder, unfinished, args)
        flat = unfinished.finish()
        if longer.path != corpus_path:
            os.replace(longer.path, corpus_path)
            with suppress(FileNotFoundError):  # in a read-only folder there is no sidecar
                os.replace(offsets_path(longer.path), offsets_path(corpus_path))
        write_note(old.path, note)  # a server cannot mistake the old index for the new one: it has fewer rows
        os.replace(flat.path, old.path)
        unfinished.forget()


def tidy(corpus_path: Path, index_path: Path) -> None:
    """Cleans up after the renames, also when an earlier run was killed during them."""
    offsets_path(beside(corpus_path, LONGER)).unlink(missing_ok=True)
    if not partial(index_path).exists():
        beside(index_path, PROGRESS).unlink(missing_ok=True)
    accept_size(corpus_path)
    accept_size(index_path)


def report_outdated(args: argparse.Namespace, index_path: Path, corpus_path: Path, old: IndexNote | None) -> None:
    """Prints how to update other indexes of the old corpus found in the folders of the corpus and the index."""
    for path in sorted({*index_path.parent.glob("*.json"), *corpus_path.parent.glob("*.json")}):
        other = path.with_suffix("")
        with suppress(InputError):  # a JSON file that is not a note
            note = read_note(other)
            if old and note and note.corpus_digest == old.corpus_digest and other != index_path:
                command = ["build_index.py", *remedy(args, note, old, index_path), "--index_path", str(other)]
                print(f"{other} is outdated: {shlex.join(command)}")


def remedy(args: argparse.Namespace, note: IndexNote, old: IndexNote, index_path: Path) -> list[str]:
    """The flags, without --index_path, that bring an outdated index up to date."""
    if note.index_type == "BM25":
        return ["--corpus_path", args.corpus_path, "--index_type", "BM25", "--overwrite"]
    encoder = ["--retriever_name", note.retriever_name, "--retriever_model", note.retriever_model]
    if note.index_type == "Flat":
        return ["--append", args.append, "--corpus_path", args.corpus_path, *encoder]
    if note.retriever_model == old.retriever_model:
        return ["--from_index", str(index_path), "--index_type", note.index_type, "--overwrite"]
    return ["--corpus_path", args.corpus_path, "--index_type", note.index_type, *encoder, "--overwrite"]
