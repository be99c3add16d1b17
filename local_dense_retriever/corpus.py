"""A corpus: a jsonl file, one passage a line, read from disk through a memory map.

A line has one of two forms; the second is converted to the first:

    {"id": "7", "contents": "\\"Title\\"\\ntext"}        as in Search-R1's wiki-18
    {"id": "7", "title": "Title", "text": "text"}

The file `<corpus>.offsets` beside it, in NumPy's format, holds the offset of each passage. It is written once, after
checking every line. Both files are memory-mapped, so opening a corpus of any size takes hardly any time or memory.
"""

import hashlib
import json
import mmap
import os
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from local_dense_retriever.errors import InputError
from local_dense_retriever.files import beside, blocks, sync

DIGEST_BYTES = 16
VERSION = 3  # of the sidecar; change it whenever the check of a line becomes stricter
JSON_SPACE = b" \t\r\n"  # bytes.strip() also strips characters that the JSON parser rejects


class Passage(NamedTuple):
    id: str
    contents: str  # '"Title"\ntext'


class Corpus:
    """The passages of one jsonl file, by row: row 0 is the first line that is not blank."""

    def __init__(self, path: str | Path) -> None:
        """Opens the corpus. Without a valid sidecar it checks every line once; InputError names the first bad one."""
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no corpus file {self.path}: check --corpus_path")
        if self.path.suffix == ".gz":
            raise InputError(f"{self.path} is compressed: unpack it first with `gunzip -k {self.path}`")
        self._offsets, self.digest = read_offsets(self.path) or build_offsets(self.path)
        with self.path.open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[Passage]:
        """All passages in order, by ordinary reads, which unlike mapped pages do not count as this process's memory."""
        with self.path.open("rb") as file:
            for line in file:
                if line.strip(JSON_SPACE):
                    yield parse_passage(line)

    def start(self, row: int) -> int:
        """The byte offset of a passage; for row len(self), the file's size."""
        return int(self._offsets[row])

    def begins_with(self, rows: int, digest: str) -> bool:
        """Whether the first `rows` passages have this digest, with or without a final newline."""
        hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
        with self.path.open("rb") as file:
            for block in blocks(file, self.start(rows) - 1):
                hashed.update(block)
            without_its_end = hashed.hexdigest()
            hashed.update(file.read(1))
        return digest in (without_its_end, hashed.hexdigest())

    def passages(self, rows: Iterable[int]) -> list[Passage]:
        """The passages of these rows, in this order; IndexError for a row that is not in 0 … len - 1."""
        found = []
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} of a corpus of {len(self)} passages")
            found.append(parse_passage(self._text[self._offsets[row] : self._offsets[row + 1]]))
        return found


# (N + 1,) bytes, of which the last is the file's size; a digest of the file's bytes, hexadecimal.
Offsets = tuple[NDArray[np.int64], str]


def offsets_path(corpus: Path) -> Path:
    return beside(corpus, ".offsets")


def read_offsets(corpus: Path) -> Offsets | None:
    """The sidecar, mapped; None if it is missing or does not match the corpus's current state."""
    now = corpus.stat()
    try:
        saved = np.load(offsets_path(corpus), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if saved[:3].tolist() != [VERSION, now.st_size, now.st_mtime_ns]:
        return None
    return saved[5:], saved[3:5].tobytes().hex()


def build_offsets(corpus: Path) -> Offsets:
    """Reads the whole corpus, checking each line, and writes the sidecar."""
    before = corpus.stat()
    starts, digest = array("q"), hashlib.blake2b(digest_size=DIGEST_BYTES)
    offset = 0
    with (
        corpus.open("rb") as file,
        tqdm(total=before.st_size, unit="B", unit_scale=True, desc=f"checking {corpus.name}", delay=2) as progress,
    ):
        for number, line in enumerate(file, start=1):
            if line.strip(JSON_SPACE):
                try:
                    parse_passage(line)
                except ValueError as error:
                    raise InputError(f"{corpus}:{number}: {error}") from error
                starts.append(offset)
            digest.update(line)
            offset += len(line)
            progress.update(len(line))
    if not starts:
        raise InputError(f"the corpus file {corpus} has no passage in it")
    starts.append(offset)
    made = np.frombuffer(starts, np.int64), digest.hexdigest()
    _write_offsets(corpus, made, before)
    return made


def _write_offsets(corpus: Path, offsets: Offsets, before: os.stat_result) -> None:
    path = offsets_path(corpus)
    temporary = beside(path, f".{os.getpid()}.tmp")
    starts, digest = offsets
    head = [VERSION, before.st_size, before.st_mtime_ns, *np.frombuffer(bytes.fromhex(digest), np.int64)]
    try:
        with temporary.open("wb") as file:
            np.save(file, np.concatenate([head, starts]))
            sync(file)
        os.replace(temporary, path)
    except OSError as error:  # such as a read-only folder: not fatal, but every start is as slow as this one
        with suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink()
        print(f"cannot write {path} ({error.strerror}): every start has to read the whole corpus", file=sys.stderr)


def parse_passage(line: bytes) -> Passage:
    """Parses one line of a corpus file. Raises ValueError, with the reason, if it is not a passage."""
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError("this line is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError for bytes that are not UTF-8
        raise ValueError(f"this line is not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("id"), str | int | float):
        raise ValueError("this line is not an object with a string or number as its id")

    contents, title, text = (record.get(field) for field in ("contents", "title", "text"))
    if contents is None and isinstance(title, str) and isinstance(text, str):
        contents = f'"{title}"\n{text}'
    if not isinstance(contents, str):
        raise ValueError("this passage has neither a string as contents nor strings as title and text")
    passage = Passage(str(record["id"]), contents)
    for field, value in passage._asdict().items():
        try:
            value.encode()  # half a surrogate pair ("\ud83d") is valid JSON, but tokenizers and HTTP replies reject it
        except UnicodeEncodeError as error:
            raise ValueError(f"the field {field} is not valid Unicode ({error.reason})") from error
    return passage
