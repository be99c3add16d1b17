"""The corpus and index of wiki-18 (Search-R1's), joined and unpacked while they are downloaded.

    python local_dense_retriever/download.py --save_path ./corpus_and_index

leaves wiki-18.jsonl (14 GB) and e5_Flat.index (65 GB). The parts of the index go straight into one file, and the
compressed corpus is unpacked as it comes and removed before the index is begun, so that never more is on the disk than
there is in the end. Every file's SHA-256 is checked. Stopped at any moment, it continues when it is run again: behind
what is there in *.partial, which it reads once for the checksum. HF_ENDPOINT names another hub, HF_TOKEN a key for it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import httpx
from tqdm import tqdm

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.errors import InputError, run_resumable

INDEX_FILE, PART_PREFIX = "e5_Flat.index", "part_"
CORPUS_FILE, PACKED_FILE = "wiki-18.jsonl", "wiki-18.jsonl.gz"
BLOCK_BYTES = 1 << 20  # of a local file
TRIES, FIRST_WAIT_S = 6, 1.0  # of one connection: half a minute in all
TIMEOUT_S = 30.0


class RemoteFile(NamedTuple):
    name: str
    url: str
    size: int
    sha256: str | None  # small files have none on the hub


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    return run_resumable(lambda: download(args))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download the corpus and index of wiki-18, 79 GB.")
    parser.add_argument("--save_path", required=True, help="folder for wiki-18.jsonl and e5_Flat.index")
    parser.add_argument(
        "--repo_id",
        default="PeterJinGo/wiki-18-e5-index",
        help="data set with the index in files part_* (default: PeterJinGo/wiki-18-e5-index)",
    )
    parser.add_argument(
        "--corpus_repo_id",
        default="PeterJinGo/wiki-18-corpus",
        help="data set with wiki-18.jsonl.gz (default: PeterJinGo/wiki-18-corpus)",
    )
    return parser.parse_args(argv)


def download(args: argparse.Namespace) -> None:
    """Fetches what is missing; raises InputError if something cannot be had."""
    folder = Path(args.save_path)
    folder.mkdir(parents=True, exist_ok=True)
    corpus, index = folder / CORPUS_FILE, folder / INDEX_FILE
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(timeout=TIMEOUT_S, headers=headers, follow_redirects=True) as client:
        if not corpus.exists():
            download_unpacked(client, find_files(client, args.corpus_repo_id, PACKED_FILE)[0], corpus)
        if not index.exists():
            download_joined(client, find_files(client, args.repo_id, PART_PREFIX), index)
    print(f"{corpus} and {index} are complete")


# ---- The two files ---------------------------------------------------------------------------------------------------


def download_unpacked(client: httpx.Client, remote: RemoteFile, target: Path) -> None:
    """One gzip file, unpacked as it comes. Its packed bytes stay until the end: unpacking begins anew with them."""
    packed, unpacked = _partial(target.with_name(remote.name)), _partial(target)
    with packed.open("ab+") as file, unpacked.open("wb") as out, _progress(remote.name, remote.size) as progress:
        try:
            for block in unzip(complete(client, remote, file, 0, progress)):
                out.write(block)
        except (zlib.error, EOFError) as error:
            file.truncate(0)
            raise InputError(f"{remote.url} cannot be unpacked ({error}): run the same command again") from error
        out.flush()
        os.fsync(out.fileno())
    os.replace(unpacked, target)
    packed.unlink()


def unzip(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Gzip's blocks unpacked. Raises zlib.error, or EOFError if they end too early."""
    member = zlib.decompressobj(wbits=31)
    for block in blocks:
        while block:
            yield member.decompress(block)
            block = member.unused_data
            if member.eof and block:  # a gzip file may be several, one after the other
                member = zlib.decompressobj(wbits=31)
    if not member.eof:
        raise EOFError("it ends too early")


def download_joined(client: httpx.Client, parts: Sequence[RemoteFile], target: Path) -> None:
    """Several files as one, in this order."""
    partial = _partial(target)
    total = sum(part.size for part in parts)
    with partial.open("ab+") as file, _progress(target.name, total) as progress:
        start = 0
        for part in parts:
            for _ in complete(client, part, file, start, progress):
                pass
            start += part.size
        file.truncate(total)
    os.replace(partial, target)


def complete(client: httpx.Client, remote: RemoteFile, file: BinaryIO, start: int, progress: tqdm) -> Iterator[bytes]:
    """All blocks of a remote file: those that are in `file` from byte `start` on, then the rest, which are added to it.

    Raises InputError if the checksum is wrong; its bytes are cut off then.
    """
    digest = hashlib.sha256()
    have = min(max(0, file.seek(0, os.SEEK_END) - start), remote.size)
    file.seek(start)
    left = have
    while left:
        block = file.read(min(BLOCK_BYTES, left))
        left -= len(block)
        digest.update(block)
        progress.update(len(block))
        yield block
    for block in fetch(client, remote, have):
        file.write(block)  # opened for appending
        digest.update(block)
        progress.update(len(block))
        yield block
    file.flush()
    os.fsync(file.fileno())
    if remote.sha256 and digest.hexdigest() != remote.sha256:
        file.truncate(start)
        raise InputError(
            f"{remote.url} came damaged (its SHA-256 is wrong): run the same command again to fetch it anew"
        )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _progress(name: str, size: int) -> tqdm:
    return tqdm(total=size, unit="B", unit_scale=True, desc=name, mininterval=1)


# ---- The hub ---------------------------------------------------------------------------------------------------------


def find_files(client: httpx.Client, repo_id: str, prefix: str) -> list[RemoteFile]:
    """The files of a data set whose names begin so, by name. Raises InputError if there are none."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    listing = _get_json(client, f"{endpoint}/api/datasets/{repo_id}/tree/main", repo_id)
    found = [
        RemoteFile(
            name := str(entry["path"]),
            f"{endpoint}/datasets/{repo_id}/resolve/main/{name}",
            int(entry["size"]),
            entry.get("lfs", {}).get("oid"),
        )
        for entry in listing
        if entry["type"] == "file" and entry["path"].startswith(prefix)
    ]
    if not found:
        raise InputError(f"the data set {repo_id} at {endpoint} has no file {prefix}…: give another --repo_id")
    return sorted(found)


def _get_json(client: httpx.Client, url: str, repo_id: str) -> list[dict]:
    for wait_s in _waits():
        try:
            reply = client.get(url)
        except httpx.TransportError as error:
            _pause_or_give_up(url, error, wait_s)
            continue
        if reply.status_code in (401, 403, 404):
            raise InputError(
                f"{url} answers {reply.status_code}: check the name of the data set {repo_id}, "
                "and if it is private set HF_TOKEN"
            )
        if reply.status_code == 200:
            return reply.json()
        _pause_or_give_up(url, f"status {reply.status_code}", wait_s)
    raise AssertionError("unreachable: the last wait gives up")


def fetch(client: httpx.Client, remote: RemoteFile, start: int) -> Iterator[bytes]:
    """The bytes from `start` to the end, over as many connections as it takes: a broken one is continued."""
    waits = _waits()
    while start < remote.size:
        before = start
        try:
            for block in _fetch_once(client, remote, start):
                start += len(block)
                yield block
            problem: Exception | str = "the connection ended early"
        except httpx.TransportError as error:
            problem = error
        if start > before:
            waits = _waits()  # it got on: that counts as a new try
        if start < remote.size:
            _pause_or_give_up(remote.url, problem, next(waits))


def _fetch_once(client: httpx.Client, remote: RemoteFile, start: int) -> Iterator[bytes]:
    with client.stream("GET", remote.url, headers={"Range": f"bytes={start}-", "Accept-Encoding": "identity"}) as reply:
        if reply.status_code >= 500 or reply.status_code == 429:
            raise httpx.RemoteProtocolError(f"status {reply.status_code}")
        if reply.status_code not in (200, 206) or (reply.status_code == 200 and start):
            raise InputError(f"{remote.url} answers {reply.status_code} to a request for its bytes from {start} on")
        left = remote.size - start
        for block in reply.iter_raw():  # as they come: a broken connection loses none
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return


def _waits() -> Iterator[float | None]:
    """Seconds before each further try; None: no more."""
    for number in range(TRIES - 1):
        yield FIRST_WAIT_S * 2**number
    yield None


def _pause_or_give_up(url: str, problem: Exception | str, wait_s: float | None) -> None:
    if wait_s is None:
        raise InputError(
            f"{url} cannot be read ({problem}): check the network and HF_ENDPOINT, then run the same command again"
        )
    time.sleep(wait_s)


if __name__ == "__main__":
    sys.exit(main())
