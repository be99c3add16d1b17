"""Trajectories for the viewer, and what a page holds of them."""

import base64
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from search_rollout.samples.record import RolloutRecord, Span, Turn
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
END = "<|im_end|>"
HOSTILE = (
    "<img src=x onerror=window.wasHacked=1><script>window.wasHacked=1</script></script><!-- <b>bold</b> &lt; "
    "مرحبا بالعالم \u202egnp.exe\u202c \x00\x07\u200b {{DATA}} ' \" \\ \u2028"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token is a byte, so that a letter beyond ASCII is several tokens; and one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def sample(
    tokenizer: Any,
    parts: list[tuple[str, str]],
    *,
    prompt: str = "What is the capital of Kenya?\n",
    reward: float | None = 1.0,
    stop: str = "answered",
    searches: list[dict[str, Any]] | None = None,
    score: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A Sample's fields as slime dumps them; `parts` are (kind, text) of the response: "turn", "observation"."""
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    encoded = [(kind, text, tokenizer.encode(text, add_special_tokens=False)) for kind, text in parts]
    mask = [int(kind == "turn") for kind, _, ids in encoded for _ in ids]
    results = [
        SearchResult(one["query"], [Passage(**document) for document in one["documents"]], one["error"])
        for one in searches or []
    ]
    record = RolloutRecord(
        StopReason.ANSWERED,
        spans=[Span(kind, len(ids)) for kind, _, ids in encoded],
        turns=[Turn("search", queries=[result.query for result in results], results=results)],
        score={"exact_match": reward == 1.0, "answer": None, **(score or {})},
    )
    fields = {
        "index": 0,
        "group_index": None,
        "prompt": prompt,
        "tokens": prompt_ids + [token for _, _, ids in encoded for token in ids],
        "response": "".join(text for _, text in parts),
        "response_length": len(mask),
        "label": {"ground_truth": {"target": ["Nairobi"]}},
        "reward": reward,
        "loss_mask": mask,
        "rollout_log_probs": [-0.01 * (n % 100) if on else 0.0 for n, on in enumerate(mask)],
        "status": "completed",
        "metadata": {"search_r1": record.as_json() | {"stop_reason": stop}},
    }
    return fields | changes


def search(query: str = "capital of Kenya", text: str = "Nairobi is the capital.") -> dict[str, Any]:
    """A search as the rollout records it."""
    return {"query": query, "error": None, "documents": [{"title": "Kenya", "text": text}]}


def write_jsonl(path: Path, samples: list[dict[str, Any]]) -> Path:
    """One sample a line."""
    path.write_text("".join(json.dumps(fields) + "\n" for fields in samples), encoding="utf-8")
    return path


def embedded(page: str) -> dict[str, Any]:
    """The data of a page by name: "index", "chunk-0", …"""
    blocks = re.findall(r'<script type="text/plain" id="([a-z0-9-]+)">([^<]*)</script>', page)
    return {name: json.loads(zlib.decompress(base64.b64decode(data, validate=True))) for name, data in blocks}


def embedded_records(page: str) -> list[dict[str, Any]]:
    """All records of a page, in order."""
    data = embedded(page)
    return [record for number in range(len(data["index"]["starts"])) for record in data[f"chunk-{number}"]]


@contextmanager
def headless_chromium() -> "Iterator[Browser]":
    """A browser without a window; skips the test if none is installed."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    from playwright.sync_api import sync_playwright  # slow to import, and most users of this module open no page

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()
