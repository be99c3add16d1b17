"""The data of the viewer's page, in a static page and from the server: an index, and chunks.

The index has one row per trajectory, the texts of the tokens, and the first row of each chunk. A chunk is the list of
the records of consecutive rows. Both are JSON, compressed with zlib.
"""

import itertools
import json
import zlib
from pathlib import Path
from typing import Any

from evaluation.sample_files import FileSample
from evaluation.terminal import typed
from evaluation.token_texts import TokenTexts
from evaluation.viewer_data import Json, trajectory

CHUNK_IDS = 50_000  # ids per chunk; opening a trajectory loads its whole chunk, in about 10 ms in a browser
RESCORE = ("--preset", "paper", "--output", "rescored.jsonl")  # shows the rewards of a file under another preset


class Trajectories:
    """Rows, token texts and chunks, in the order in which samples are added."""

    def __init__(self, tokenizer: Any) -> None:
        self.texts = TokenTexts(tokenizer)
        self.rows: list[Json] = []
        self._files: dict[str, Path] = {}  # by the names of the rows' `file`
        self.starts: list[int] = [0]  # the first row of each chunk; the last chunk still grows
        self._full: list[bytes] = []  # chunks
        self._growing: list[Json] = []  # records
        self._ids = 0  # in the growing chunk

    def add(self, sample: FileSample, file: str) -> None:
        """Adds a sample under the name `file`. Raises ValueError that names its place if it cannot be shown."""
        try:
            row, record = trajectory(sample.fields, file, self.texts)
        except ValueError as error:
            raise ValueError(f"{sample.where}: {error}.") from None
        self.rows.append(row | {"where": sample.place})
        self._files[file] = sample.path
        self._growing.append(record)
        self._ids += len(record["ids"])
        if self._ids >= CHUNK_IDS:
            self._full.append(pack(self._growing))
            self.starts.append(len(self.rows))
            self._growing, self._ids = [], 0

    def index(self, model: str, *, rows: int = 0, tokens: int = 0) -> Json:
        """The index for a page that has this many rows and tokens already; `model` was rolled out."""
        return {
            "rows": self.rows[rows:],
            "starts": self.starts,
            "tokens": dict(itertools.islice(self.texts.table.items(), tokens, None)),
            "model": model,
            "rescore": {name: typed("rescore", path, *RESCORE) for name, path in self._files.items()},
        }

    def chunk(self, number: int) -> bytes:
        """The records from row `starts[number]` on."""
        return self._full[number] if number < len(self._full) else pack(self._growing)


def pack(value: Any, *, level: int = 6) -> bytes:
    """JSON, compressed. HTTP calls this format deflate."""
    return zlib.compress(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), level)
