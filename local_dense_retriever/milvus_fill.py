"""Fills a Milvus collection with the vectors of a corpus, for build_index.py; a killed run continues.

Rows are written in order, chunk by chunk, under their primary key, so a chunk that is written twice is stored once. A
run continues with the first chunk that lacks a row.
"""

import argparse
import bisect
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from local_dense_retriever import embedding
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.errors import InputError
from local_dense_retriever.flat_file import require_flat
from local_dense_retriever.milvus_index import NOTE, connect, count_rows, named_errors, read_collection_note
from local_dense_retriever.notes import IndexNote, read_note

WRITE_TIMEOUT_S = 120.0  # per chunk, including the client's retries
POLL_S = 1.0


def fill(args: argparse.Namespace) -> None:
    """Fills --milvus_collection from --corpus_path or --from_index; raises InputError if something is wrong."""
    if args.append:
        raise InputError(
            "--append is for a flat index file: append there, then give it here as --from_index, with --overwrite"
        )
    parse_index_type(args.index_type)
    if args.from_index:
        flat = require_flat(args.from_index, "--from_index")
        note = read_note(flat.path) or IndexNote("", flat.rows, flat.dim, "", "", "")
        rows = Filling(args, note._replace(index_type=args.index_type))
        blocks = flat.blocks(rows.rows_done, flat.rows, embedding.CHUNK_ROWS)
        embedding.fill(rows, embedding.finite(blocks, rows.rows_done), flat.rows)
    else:
        corpus = Corpus(args.corpus_path)
        encoder, note = embedding.load_named_encoder(args, corpus)
        rows = Filling(args, note)
        embedding.embed(corpus, encoder, rows, args)
    rows.finish()


class Filling:
    """A collection that is being filled in the order of the corpus."""

    def __init__(self, args: argparse.Namespace, note: IndexNote) -> None:
        """Continues or creates the collection. Raises InputError if it has another source, without --overwrite."""
        self._name, self._note = args.milvus_collection, note
        self._path = f"{args.milvus_uri} ({self._name})"
        self._client = connect(args.milvus_uri)
        with named_errors(self._path):
            self._prepare(args.overwrite)
            self._client.load_collection(self._name)
            self.rows_done = self._rows_without_gap()
        if self.rows_done:
            print(f"continuing {self._path}: {self.rows_done} of {note.rows} passages are done", flush=True)

    def _prepare(self, overwrite: bool) -> None:
        """Creates the collection unless it can be continued. `overwrite` too continues one that a killed run left."""
        if self._client.has_collection(self._name):
            old = read_collection_note(self._client, self._path, self._name)
            if not overwrite and (changed := self._note.differences(old)):
                raise InputError(
                    f"the collection {self._path} was made with another {changed}: give another --milvus_collection, "
                    "or --overwrite to replace it"
                )
            if overwrite and (old != self._note or self._is_full()):
                self._client.drop_collection(self._name)
        if not self._client.has_collection(self._name):
            self._create()

    def _is_full(self) -> bool:
        self._client.load_collection(self._name)  # Milvus counts rows only in a loaded collection
        return count_rows(self._client, self._name) == self._note.rows

    def _rows_without_gap(self) -> int:
        """The number of rows before the first incomplete chunk."""

        def has_gap(rows: int) -> bool:
            return count_rows(self._client, self._name, f"row < {rows}") < rows

        borders = [*range(0, self._note.rows, embedding.CHUNK_ROWS), self._note.rows]
        return borders[bisect.bisect_left(borders, True, key=has_gap) - 1]

    def _create(self) -> None:
        from pymilvus import DataType

        index_type, params = parse_index_type(self._note.index_type)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._note.dim)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=index_type, metric_type="IP", params=params)
        properties = {NOTE: json.dumps(self._note._asdict())}
        try:
            self._client.create_collection(self._name, schema=schema, index_params=index, properties=properties)
        except BaseException:  # such as a rejected index, without which the collection is useless
            self._client.drop_collection(self._name)
            raise

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Writes (B, D) float32 rows. Raises InputError if Milvus does not answer."""
        entities = [{"row": row, "vector": vector} for row, vector in enumerate(vectors, start=self.rows_done)]
        with named_errors(self._path):
            self._client.upsert(self._name, entities, timeout=WRITE_TIMEOUT_S)
        self.rows_done += len(vectors)

    def finish(self) -> None:
        with named_errors(self._path):
            self._client.flush(self._name)
            while pending := int(self._client.describe_index(self._name, "vector").get("pending_index_rows", 0)):
                print(f"Milvus builds its index: {pending} rows are left", flush=True)
                time.sleep(POLL_S)
            count = count_rows(self._client, self._name)
        if count != self._note.rows:
            raise InputError(f"{self._path} has {count} rows instead of {self._note.rows}: run the same command again")
        print(f"filled {self._path}: {count} passages, {self._note.dim} numbers each, {self._note.index_type}")


def parse_index_type(text: str) -> tuple[str, dict[str, Any]]:
    """Milvus's name of an index and its settings: "HNSW,M=32,efConstruction=200". Raises InputError."""
    name, *settings = text.split(",")
    try:
        if name == "BM25":
            raise ValueError(name)
        pairs = [setting.split("=") for setting in settings]
        params = {key: int(value) if value.isdigit() else value for key, value in pairs}
    except ValueError as error:
        raise InputError(
            f"--index_type {text} is not a Milvus index: write its name and settings, such as FLAT, DISKANN, "
            "IVF_FLAT,nlist=4096 or HNSW,M=32,efConstruction=200"
        ) from error
    return name.upper(), params
