"""A Milvus collection as a vector index: the same calls work for a milvus-lite file and a cluster at a URL.

    row       int64, the primary key: a row of the corpus
    vector    float32, of length 1

The collection's property NOTE holds its IndexNote. Texts stay in the corpus file (docs/MULTI_NODE.md says why).
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from local_dense_retriever.errors import InputError, needing
from local_dense_retriever.notes import IndexNote
from local_dense_retriever.searcher import About, Found, UnavailableError, best

TOKEN_VARIABLE = "MILVUS_TOKEN"  # an API key, or user:password
NOTE = "search_r1.note"
CONNECT_TIMEOUT_S = 10.0
SEARCH_TIMEOUT_S = 10.0  # per batch, including the client's retries; then the server answers 503
COUNT_TIMEOUT_S = 60.0


class MilvusIndex:
    """A collection filled by build_index.py. Its row i is row i of the corpus."""

    def __init__(self, uri: str, collection: str, *, nprobe: int | None = None, ef_search: int | None = None) -> None:
        """Loads it: minutes on a cluster. Raises InputError if Milvus is silent or build_index.py did not make it."""
        if not is_url(uri) and not Path(uri).exists():
            raise InputError(f"there is no file {uri}: fill it with build_index.py, or correct --milvus_uri")
        self._path = f"{uri} ({collection})"
        self._client = connect(uri)
        self._collection = collection
        with named_errors(uri):
            self.note = note = read_collection_note(self._client, self._path, collection)
            self._client.load_collection(collection)
            rows = count_rows(self._client, collection)
        self._loaded = True
        size = rows * note.dim * 4  # of the vectors in float32; Milvus may compress them or keep more copies
        self.about = About(self._path, f"milvus {note.index_type}", rows, note.dim, size)
        self._nprobe, self._ef_search = nprobe, ef_search

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        """(B, D) float32 queries -> the (B, k) nearest rows, -1 = none. Raises UnavailableError if Milvus is silent."""
        finite = np.isfinite(vectors).all(axis=1)  # one that is not makes Milvus refuse the whole batch
        rows, scores = found = Found.nothing(len(vectors), k)
        if not finite.any():
            return found
        for query, hits in zip(np.flatnonzero(finite), self._search(vectors[finite], k), strict=True):
            rows[query, : len(hits)] = [hit["row"] for hit in hits]
            scores[query, : len(hits)] = [hit["distance"] for hit in hits]
        return best(rows, scores, k)

    def _search(self, vectors: NDArray[np.float32], k: int) -> Sequence[Sequence[dict[str, Any]]]:
        given = {"nprobe": self._nprobe, "ef": self._ef_search and max(self._ef_search, k)}  # Milvus refuses ef < k
        params = {name: value for name, value in given.items() if value is not None}
        is_loaded, self._loaded = self._loaded, False  # after an error: a restarted Milvus may have to load it again
        with named_errors(self._path, UnavailableError):
            if not is_loaded:
                self._client.load_collection(self._collection, timeout=SEARCH_TIMEOUT_S)
            found = self._client.search(
                self._collection,
                data=vectors,
                anns_field="vector",
                limit=k,
                output_fields=["row"],
                search_params={"metric_type": "IP", "params": params},
                timeout=SEARCH_TIMEOUT_S,
            )
        self._loaded = True
        return found

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """(N, D) float32, the stored vectors of these rows, in this order. Raises InputError if one is missing."""
        with named_errors(self._path):
            found = self._client.get(self._collection, ids=list(rows), output_fields=["vector"])
        stored = {entity["row"]: entity["vector"] for entity in found}
        if missing := [row for row in rows if row not in stored]:
            raise InputError(f"{self._path} has no row {missing[0]}: fill it again with build_index.py")
        return np.array([stored[row] for row in rows], np.float32)


def connect(uri: str) -> Any:
    """A MilvusClient with the token of MILVUS_TOKEN. Raises InputError, without any secret, if it cannot connect."""
    if is_url(uri) and "@" in urlsplit(uri).netloc:
        raise InputError(
            f"--milvus_uri holds a password, which every user of this machine can read: put "
            f"user:password into {TOKEN_VARIABLE}"
        )
    token = os.environ.get(TOKEN_VARIABLE, "").strip()  # a token read from a file ends in a newline
    if not (token.isprintable() and token.isascii()):
        raise InputError(f"{TOKEN_VARIABLE} has an invalid character: set it again")
    with needing("Milvus", install="pymilvus"):
        from pymilvus import MilvusClient
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the exceptions say the same more briefly
    with named_errors(uri):
        return MilvusClient(uri=uri, token=token, timeout=CONNECT_TIMEOUT_S)


def is_url(uri: str) -> bool:
    """True for the URL of a cluster, False for the path of a milvus-lite file."""
    return "://" in uri


@contextmanager
def named_errors(name: str, kind: type[Exception] = InputError) -> Iterator[None]:
    """Turns pymilvus's exceptions into one of this kind that names the collection or server."""
    import grpc
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:  # a timeout is gRPC's own exception
        reason = " ".join(str(error.details() if hasattr(error, "details") else error.message).split())
        check = f"check that it runs, --milvus_uri and {TOKEN_VARIABLE}"
        if not is_url(name):
            check = "only one process at a time may open such a file: stop the other one, or correct --milvus_uri"
        raise kind(f"Milvus at {name} fails ({reason}): {check}") from error


def read_collection_note(client: Any, path: str, collection: str) -> IndexNote:
    """Raises InputError if there is no such collection, or if build_index.py did not make it."""
    if not client.has_collection(collection):
        raise InputError(f"there is no collection {path}: fill it with build_index.py, or correct --milvus_collection")
    properties = client.describe_collection(collection).get("properties", {})
    try:
        return IndexNote(**json.loads(properties[NOTE]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"the collection {path} was not made by build_index.py: give another --milvus_collection"
        ) from error


def count_rows(client: Any, collection: str, condition: str = "") -> int:
    """The number of rows that satisfy the condition, including those just written."""
    settings = {"consistency_level": "Strong", "timeout": COUNT_TIMEOUT_S}
    found = client.query(collection, filter=condition, output_fields=["count(*)"], **settings)
    return int(found[0]["count(*)"])
