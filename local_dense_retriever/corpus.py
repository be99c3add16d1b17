"""A corpus: a jsonl file, one passage a line, read from disk when it is asked for.

Two shapes of a line are understood, and the second is turned into the first:

    {"id": "7", "contents": "\\"Title\\"\\ntext"}        the shape of Search-R1's wiki-18
    {"id": "7", "title": "Title", "text": "text"}

Only the byte offset of every passage stays in memory (8 bytes each, 170 MB for the 21 million of wiki-18); the text,
14 GB there, stays in the file and in the operating system's page cache.
"""

import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from local_dense_retriever.errors import InputError


class Passage(NamedTuple):
    id: str
    contents: str  # '"Title"\ntext'


class Corpus:
    """The passages of one jsonl file, by row: row 0 is the first line that is not blank."""

    def __init__(self, path: str | Path) -> None:
        """Reads the file once, checks every line, and notes where each passage begins.

        Raises InputError, naming file and line, if anything in it is not a passage.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no corpus file {self.path}: check --corpus_path")
        if self.path.suffix == ".gz":
            raise InputError(f"{self.path} is compressed: unpack it first with `gunzip -k {self.path}`")

        self._offsets = array("q")  # (N + 1,) bytes; the last one is the file's size
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        parse_passage(line)
                    except ValueError as error:
                        raise InputError(f"{self.path}:{number}: {error}") from error
                    self._offsets.append(offset)
                offset += len(line)
        if not self._offsets:
            raise InputError(f"the corpus file {self.path} has no passage in it")
        self._offsets.append(offset)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def passages(self, rows: Iterable[int]) -> list[Passage]:
        """The passages of these rows, in this order; IndexError for a row that is not in 0 … len - 1.

        Safe to call from several threads: every call opens the file for itself.
        """
        found = []
        with self.path.open("rb") as file:
            for row in rows:
                if not 0 <= row < len(self):
                    raise IndexError(f"row {row} of a corpus of {len(self)} passages")
                file.seek(self._offsets[row])
                found.append(parse_passage(file.readline()))
        return found


def parse_passage(line: bytes) -> Passage:
    """One line of a corpus file as a Passage; ValueError, saying what is wrong, if it is not one."""
    try:
        record = json.loads(line)
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError for bytes that are not UTF-8
        raise ValueError(f"this line is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("id") is None:
        raise ValueError("this line is not an object with a field id")

    contents = record.get("contents")
    if contents is None and "title" in record and "text" in record:
        contents = f'"{record["title"]}"\n{record["text"]}'
    if contents is None or not isinstance(contents, str):
        raise ValueError("this passage has no string in a field contents, nor the fields title and text")
    try:
        contents.encode()  # half a surrogate pair ("\ud83d") is valid JSON, and no tokenizer or HTTP reply takes it
    except UnicodeEncodeError as error:
        raise ValueError(f"the contents are not valid Unicode ({error.reason})") from error
    return Passage(str(record["id"]), contents)
