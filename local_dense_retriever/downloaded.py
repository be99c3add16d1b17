"""The folder that download.py fills, and checks of its files. Imports the standard library only.

    wiki-18.jsonl                  the corpus
    e5_Flat.index/e5_Flat.index    the index, in a folder of its own name
    download.json                  sizes and SHA-256 sums of both

Given the folder `e5_Flat.index`, every tool uses the file inside. It is a folder because the original instructions end
with `cat part_* > e5_Flat.index`: that would truncate a file, but fails on a folder.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from local_dense_retriever.errors import InputError
from local_dense_retriever.files import blocks, partial, write_json

NOTE_FILE = "download.json"
AGAIN = "run download.py again, which fetches what is missing"


class Piece(NamedTuple):
    """A range of a file; the pieces together make up the whole file."""

    size: int
    sha256: str | None


def index_file(path: str | Path) -> Path:
    """The file of an index, also in a folder that download.py made. Raises InputError if its download is incomplete."""
    inner = Path(path) / Path(path).name
    if inner.is_file():
        return inner
    if partial(inner).is_file():
        raise InputError(f"the download of {path} is not complete: {AGAIN}")
    return Path(path)


def parse_note(text: str) -> dict[str, list[Piece]]:
    """The pieces of each file; empty if the text is no note."""
    try:
        return {name: [Piece(*piece) for piece in pieces] for name, pieces in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def damage(file: Path, pieces: list[Piece], sums: bool) -> str | None:
    """What is wrong with a downloaded file, judged by its size and, with `sums`, its content; None if it is intact.

    A file without pieces, which download.py did not make, must only not be empty.
    """
    size, expected = file.stat().st_size, sum(piece.size for piece in pieces)
    if size != expected if pieces else size == 0:
        return f"{file} has {size} bytes" + (f" and should have {expected}" if pieces else "")
    with file.open("rb") as opened:
        for piece in pieces if sums else []:
            start, digest = opened.tell(), hashlib.sha256()
            for block in blocks(opened, piece.size):
                digest.update(block)
            if piece.sha256 not in (None, digest.hexdigest()):
                return f"{file} is damaged between byte {start} and {start + piece.size} (its SHA-256 is wrong)"
    return None


def check_downloaded(path: str | Path, sums: bool = False) -> None:
    """Raises InputError if the file at `path` is not what download.py wrote there."""
    path, file = Path(path), index_file(path)
    note = path.parent / NOTE_FILE
    pieces = parse_note(note.read_text(encoding="utf-8")).get(path.name, []) if note.is_file() else []
    if file.is_file() and (found := damage(file, pieces, sums)):
        raise InputError(f"{found}: {AGAIN if pieces else 'download or build it again'}")


def accept_size(path: Path) -> None:
    """Accepts the new size of a downloaded corpus or index after an append, and drops its checksums."""
    for note in (path.parent / NOTE_FILE, path.parent.parent / NOTE_FILE):
        pieces = parse_note(note.read_text(encoding="utf-8")) if note.is_file() else {}
        size = path.stat().st_size
        if path.name in pieces and sum(piece.size for piece in pieces[path.name]) != size:
            write_json(note, {**pieces, path.name: [Piece(size, None)]})
