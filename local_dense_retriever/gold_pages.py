"""Reads from question sets what each question needs in the corpus: its answer, and pages by title or passages by id.

FlashRAG        golden_answers, metadata.supporting_facts.title (HotpotQA, 2Wiki)
                or metadata.question_decomposition[].support_paragraph.title (MuSiQue)
prompt data     reward_model, data_source; titles if its metadata still has them
the demo's      answers, hops[].passage_id (demo/world_facts.py); its set is called "demo"
"""

import html
import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from local_dense_retriever.errors import InputError, needing
from qa_em_format import gold_answers, normalize_answer

GOLDS = ("golden_answers", "answers", "reward_model")
SPLITS = ("train", "dev", "test", "validation")
SPELLINGS = str.maketrans({'"': None, "“": None, "”": None, "‘": "'", "’": "'", "–": "-", "—": "-", "_": " "})


class Page(NamedTuple):
    kind: str  # "title", or "passage_id"
    key: str  # title_key of the title, or the id


class Asked(NamedTuple):
    data_set: str
    id: str
    golds: list[str]  # as the row writes them
    answers: frozenset[str]  # the normalised golds; empty for yes and no, which any passage may contain
    pages: dict[Page, str]  # page → how the row writes it; empty if the row names none


def title_key(title: str) -> str:
    """A key that ignores a title's case, Unicode form, quotes, dashes and underscores.

    "Mercury (planet)" and "Mercury" stay two pages, as on Wikipedia. Redirects are not resolved.
    """
    plain = unicodedata.normalize("NFKC", html.unescape(title)).translate(SPELLINGS)
    return " ".join(plain.casefold().split())


def read_asked(file: Path) -> Iterator[Asked]:
    """The questions of a .jsonl or .parquet file. Raises InputError, naming file and row, if one has no answer."""
    name = file.resolve().parent.name if file.stem in SPLITS else file.stem
    number = 0
    try:
        for number, row in enumerate(_rows(file), start=1):
            yield asked(row, name, number)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InputError(f"{file}, row {number} or the next cannot be read as a question ({error})") from error


def asked(row: Mapping[str, Any], data_set: str, number: int) -> Asked:
    """One row; `data_set` names the set of rows without a data_source."""
    metadata = row.get("metadata") or {}
    hops = row.get("hops") if "answers" in row else None
    golds = gold_answers(next((row[key] for key in GOLDS if row.get(key)), None))
    golds = [gold for gold in golds if gold.strip()]
    if not golds:
        raise ValueError("it has no gold answer in golden_answers, reward_model or answers")
    answers = frozenset(filter(None, map(normalize_answer, golds)))
    if hops is not None:
        pages = {Page("passage_id", hop["passage_id"]): hop["passage_id"] for hop in hops}
    else:
        pages = {Page("title", title_key(title)): title for title in supporting_titles(metadata)}
    own = row.get("id") or (row.get("extra_info") or {}).get("id") or metadata.get("question_id") or number
    data_set = "demo" if hops is not None else row.get("data_source") or data_set
    return Asked(data_set, str(own), golds, frozenset() if answers & {"yes", "no"} else answers, pages)


def supporting_titles(metadata: Mapping[str, Any]) -> list[str]:
    """The titles of the pages that annotators needed for the answer; empty if any of them has no title."""
    if facts := metadata.get("supporting_facts"):
        return list(facts["title"])
    steps = metadata.get("question_decomposition")
    paragraphs = [step.get("support_paragraph") for step in (steps if steps is not None else [])]
    return [paragraph["title"] for paragraph in paragraphs] if all(paragraphs) else []


def _rows(file: Path) -> Iterator[Any]:
    if not file.is_file():
        raise InputError(f"there is no file {file}: check --data")
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    elif file.suffix == ".parquet":
        with needing(str(file), install="pyarrow"):
            from pyarrow.parquet import ParquetFile
        with ParquetFile(file) as table:
            for batch in table.iter_batches(1000):
                yield from batch.to_pylist()
    else:
        raise InputError(f"{file} is neither .jsonl nor .parquet: check --data")
