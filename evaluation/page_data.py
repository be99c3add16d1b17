"""The data of the viewer's page, in a static page and from the server: an index, and chunks.

The index has one row per trajectory, the texts of the tokens, and the first row of each chunk. A chunk has the records
of consecutive rows and stores documents that they share once. Both are JSON, compressed with zlib.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.terminal import typed
from evaluation.viewer_data import Json

CHUNK_IDS = 50_000  # ids per chunk; opening a trajectory loads its whole chunk, in about 10 ms in a browser


def pack(value: Any, *, level: int = 6) -> bytes:
    """JSON, compressed. HTTP calls this format deflate."""
    return zlib.compress(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), level)


def pack_chunk(records: Sequence[Json]) -> bytes:
    """The records of one chunk."""
    documents: dict[tuple[str, str], int] = {}

    def numbered(search: Json) -> Json:
        found = map(tuple, search["documents"])
        return {**search, "documents": [documents.setdefault(document, len(documents)) for document in found]}

    numbered_records = [{**record, "searches": [*map(numbered, record["searches"])]} for record in records]
    return pack({"documents": list(documents), "records": numbered_records})


def rescore_command(file: Path) -> str:
    """The command that computes the rewards of a file's trajectories under another preset."""
    return typed("rescore", file, "--preset", "paper", "--output", "rescored.jsonl")
