"""Downloads Search-R1's wiki-18 corpus and E5 index (79 GB), joined and unpacked.

    python local_dense_retriever/download.py --save_path ./corpus_and_index

The corpus comes first, and the parts of the index go straight into one file, so the disk hardly holds more than both.
`downloaded.py` describes the files. Every part's SHA-256 is checked. Run the command again to continue an interrupted
download. HF_ENDPOINT sets another hub, HF_TOKEN its key.
"""

import argparse
import gzip
import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from tqdm import tqdm

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.downloaded import NOTE_FILE, Piece, damage, parse_note
from local_dense_retriever.errors import InputError, run_command
from local_dense_retriever.files import blocks, lock, partial, sync

INDEX_FILE, PART_PREFIX = "e5_Flat.index", "part_"
CORPUS_FILE, PACKED_FILE = "wiki-18.jsonl", "wiki-18.jsonl.gz"
BLOCK_BYTES = 1 << 18  # read from a reply at a time
TRIES, FIRST_WAIT_S = 6, 1.0  # per connection: half a minute in total
TIMEOUT_S = 30.0


class RemoteFile(NamedTuple):
    name: str
    url: str
    size: int
    sha256: str | None  # None: the hub has none for small files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Download the corpus and index of wiki-18, 79 GB.")
    add = parser.add_argument
    add("--save_path", required=True, help="folder for wiki-18.jsonl and e5_Flat.index")
    index, corpus = "PeterJinGo/wiki-18-e5-index", "PeterJinGo/wiki-18-corpus"
    add("--repo_id", default=index, help=f"data set with the index in files part_* (default: {index})")
    add("--corpus_repo_id", default=corpus, help=f"data set with wiki-18.jsonl.gz (default: {corpus})")
    add("--verify", action="store_true", help="check the SHA-256 sums of files already complete")
    args = parser.parse_args(argv)
    return run_command(lambda: download(args))


def download(args: argparse.Namespace) -> None:
    """Fetches what is missing; raises InputError if something cannot be fetched."""
    folder = Path(args.save_path)
    folder.mkdir(parents=True, exist_ok=True)
    corpus, index = folder / CORPUS_FILE, folder / INDEX_FILE
    with (folder / NOTE_FILE).open("a+", encoding="utf-8") as file:
        if not lock(file, folder / NOTE_FILE):
            raise InputError(f"another download.py is writing to {folder}: let it finish, or stop it")
        note = Note(file)
        inner = make_folder(index)
        if not is_whole(corpus, note, args.verify):
            corpus.unlink(missing_ok=True)
            download_unpacked(find_files(args.corpus_repo_id, PACKED_FILE)[0], corpus, note)
        if not (INDEX_FILE in note.pieces and is_whole(inner, note, args.verify)):
            if inner.exists():
                os.replace(inner, partial(inner))
            parts = find_files(args.repo_id, PART_PREFIX)
            download_parts(parts, partial(inner))
            note.add(inner.name, [Piece(part.size, part.sha256) for part in parts])
            os.replace(partial(inner), inner)
    print(f"{corpus} and {index} are complete, already joined and unpacked")


class Note:
    """The open file download.json, whose lock keeps other download.py processes out of the folder."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        file.seek(0)
        self.pieces = parse_note(file.read())

    def add(self, name: str, pieces: list[Piece]) -> None:
        """Notes a file's pieces. Call it before renaming the file: a note for a missing file is harmless."""
        self.pieces[name] = pieces
        self._file.truncate(0)
        json.dump(self.pieces, self._file, indent=1)
        sync(self._file)


def is_whole(file: Path, note: Note, sums: bool) -> bool:
    """True if the file exists and matches the note; prints the problem otherwise."""
    if not file.is_file():
        return False
    if found := damage(file, note.pieces.get(file.name, []), sums):
        print(f"{found}: fetching what is missing", flush=True)
    return found is None


def make_folder(index: Path) -> Path:
    """Makes the index's folder; returns the index's path inside. A plain file of that name is moved in and resumed."""
    moving = index.with_name(index.name + ".moving")
    if index.is_file():
        moving.mkdir(exist_ok=True)
        os.replace(index, partial(moving / index.name))
    if moving.is_dir():
        os.replace(moving, index)
    index.mkdir(exist_ok=True)
    return index / index.name


def download_unpacked(remote: RemoteFile, target: Path, note: Note) -> None:
    """Downloads and unpacks a gzip file. The packed file is kept until the end."""
    packed, unpacked = partial(target.with_name(remote.name)), partial(target)
    download_parts([remote], packed)
    digest, size = hashlib.sha256(), 0
    with gzip.open(packed) as file, unpacked.open("wb") as out, _progress(f"unpacking {remote.name}") as progress:
        try:
            while block := file.read(BLOCK_BYTES):
                out.write(block)
                digest.update(block)
                size += len(block)
                progress.update(len(block))
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            packed.unlink()
            raise InputError(f"{remote.url} cannot be unpacked ({error}): run the same command again") from error
        sync(out)
    note.add(target.name, [Piece(size, digest.hexdigest())])
    os.replace(unpacked, target)
    packed.unlink()


def download_parts(parts: Sequence[RemoteFile], path: Path) -> None:
    """Writes the parts one after the other into a file. A part that is damaged on disk is fetched again, alone."""
    path.touch()
    total = sum(part.size for part in parts)
    with path.open("rb+") as file, _progress(path.stem, total) as progress:
        start = 0
        for part in parts:
            have = min(max(0, file.seek(0, os.SEEK_END) - start), part.size)
            if not complete(part, file, start, have, progress):
                progress.update(-part.size)
                if have == 0 or not complete(part, file, start, 0, progress):
                    raise InputError(f"{part.url} arrived damaged (its SHA-256 is wrong): run the same command again")
            start += part.size
        file.truncate(total)


def complete(remote: RemoteFile, file: BinaryIO, start: int, have: int, progress: tqdm) -> bool:
    """Writes a remote file at byte `start`, where its first `have` bytes already stand. False if its sum is wrong."""
    digest = hashlib.sha256()
    file.seek(start)
    for block in blocks(file, have):
        digest.update(block)
        progress.update(len(block))
    for block in fetch(remote, have):
        file.write(block)
        digest.update(block)
        progress.update(len(block))
    sync(file)
    return remote.sha256 in (None, digest.hexdigest())


def _progress(name: str, size: int | None = None) -> tqdm:
    return tqdm(total=size, unit="B", unit_scale=True, desc=name, mininterval=1)


def find_files(repo_id: str, prefix: str) -> list[RemoteFile]:
    """The files of a data set whose names begin with `prefix`, sorted by name. Raises InputError if there are none."""
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    if not re.fullmatch(r"https?://\S+", endpoint):
        raise InputError(f"HF_ENDPOINT is {endpoint!r}: give a URL that begins with https://, or unset it")
    found = [
        RemoteFile(
            name := str(entry["path"]),
            f"{endpoint}/datasets/{repo_id}/resolve/main/{name}",
            int(entry["size"]),
            entry.get("lfs", {}).get("oid"),
        )
        for entry in _get_json(f"{endpoint}/api/datasets/{repo_id}/tree/main")
        if entry["type"] == "file" and entry["path"].startswith(prefix)
    ]
    if not found:
        raise InputError(f"the data set {repo_id} at {endpoint} has no file {prefix}…: give another --repo_id")
    return sorted(found)


def _get_json(url: str) -> list[dict[str, Any]]:
    tries = 0
    while True:
        tries += 1
        try:
            with _open(url) as reply:
                return json.loads(reply.read())
        except (http.client.HTTPException, OSError) as error:
            _wait_or_raise(url, error, tries)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{url} does not answer with JSON: check HF_ENDPOINT") from error


def fetch(remote: RemoteFile, start: int) -> Iterator[bytes]:
    """The bytes from `start` to the end; reconnects if the connection breaks."""
    tries = 0  # since the last progress
    while start < remote.size:
        problem: Exception = EOFError("the connection ended early")
        tries += 1
        try:
            with _open(remote.url, start) as reply:
                if reply.status != 206 and start:
                    raise InputError(f"{remote.url} answers {reply.status} to a request for its bytes from {start} on")
                while start < remote.size and (block := reply.read1(BLOCK_BYTES)[: remote.size - start]):
                    start += len(block)
                    tries = 1
                    yield block
        except (http.client.HTTPException, OSError) as error:
            problem = error
        if start < remote.size:
            _wait_or_raise(remote.url, problem, tries)


def _open(url: str, start: int | None = None) -> http.client.HTTPResponse:
    """A successful reply, from byte `start` on. Raises InputError, or another exception if a new try may help."""
    headers = {} if start is None else {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    token = os.environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError("HF_TOKEN has a space or another invalid character: set it again")  # without the value
    try:
        request = urllib.request.Request(url, headers=headers)
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # not sent to the host it redirects to
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500 or error.code == 429:
            raise ConnectionError(f"status {error.code}") from error
        raise InputError(
            f"{url} answers {error.code}: check the name of the data set, and if it is private set HF_TOKEN"
        ) from error
    except ValueError as error:
        raise InputError(f"{url} is not a URL: check HF_ENDPOINT") from error


def _wait_or_raise(url: str, problem: Exception, tries: int) -> None:
    if tries == TRIES:
        reason = getattr(problem, "reason", None) or str(problem) or type(problem).__name__
        raise InputError(
            f"{url} cannot be read ({reason}): check the network and HF_ENDPOINT, then run the same command again"
        )
    time.sleep(FIRST_WAIT_S * 2 ** (tries - 1))


if __name__ == "__main__":
    sys.exit(main())
