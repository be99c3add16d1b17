"""The data of the viewer's page, as it stands in a static page and as the server sends it: an index, and chunks.

The index has a row per trajectory, the texts of the tokens, and the row that each chunk begins with. A chunk has the
records of consecutive rows; documents that several of them hold are in it once. Both are JSON, compressed by zlib.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.terminal import typed
from evaluation.viewer_data import Json

CHUNK_IDS = 50_000  # ids that are read together when one of their trajectories is opened: some 10 ms in a browser


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
    """The command that says which rewards the trajectories of a file would have had under another preset."""
    return typed("rescore", file, "--preset", "paper", "--output", "rescored.jsonl")
