"""Writes one web page to look through trajectories with.

    search-r1 view runs/demo-…                          a demo run: RUN/trajectories.html
    search-r1 view runs/eval-step100                    the output folder of an evaluation
    search-r1 view dumps/*.pt --tokenizer MODEL_DIR     slime's debug dumps (--save-debug-rollout-data), or JSONL

The page is one file, opens from disk and asks nothing of the network. All text of trajectories is stored in it as
compressed base64, so none of it is ever parsed as HTML; the page's script writes it as text only.
"""

import argparse
import base64
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from evaluation.records import tokenizer_of
from evaluation.sample_files import read_samples
from evaluation.terminal import Progress, short
from evaluation.token_texts import TokenTexts
from evaluation.viewer_data import Json, trajectory

CHUNK_IDS = 50_000  # ids that are read together when one of their trajectories is opened: some 10 ms in a browser
PAGE_PARTS = Path(__file__).parent


class PageWriter:
    """Writes the page piece by piece, so that memory holds the rows, the table of tokens and one chunk only."""

    def __init__(self, page: TextIO, texts: TokenTexts) -> None:
        self._page = page
        self._texts = texts
        self._rows: list[Json] = []
        self._starts: list[int] = []  # the first row of each chunk
        self._records: list[Json] = []
        self._ids = 0  # in the chunk
        head, _, self._tail = _page_parts()
        page.write(head)

    def add(self, row: Json, record: Json) -> None:
        """One more trajectory."""
        self._rows.append(row)
        self._records.append(record)
        self._ids += len(record["ids"])
        if self._ids >= CHUNK_IDS:
            self._write_chunk()

    def finish(self) -> int:
        """Writes what is left; returns the number of trajectories."""
        if self._records:
            self._write_chunk()
        index = {"rows": self._rows, "starts": self._starts, "tokens": self._texts.table}
        self._write_data("index", index)
        self._page.write(self._tail)
        return len(self._rows)

    def _write_chunk(self) -> None:
        """Records, with documents that several of them hold written once."""
        documents: dict[tuple[str, str], int] = {}
        for record in self._records:
            for search in record["searches"]:
                found = map(tuple, search["documents"])
                search["documents"] = [documents.setdefault(document, len(documents)) for document in found]
        self._write_data(f"chunk-{len(self._starts)}", {"documents": list(documents), "records": self._records})
        self._starts.append(len(self._rows) - len(self._records))
        self._records, self._ids = [], 0

    def _write_data(self, name: str, value: Any) -> None:
        packed = zlib.compress(json.dumps(value, separators=(",", ":"), allow_nan=False).encode())
        data = base64.b64encode(packed).decode()
        self._page.write(f'<script type="text/plain" id="{name}">{data}</script>\n')


def _page_parts() -> tuple[str, str, str]:
    """The page around its data. Its policy allows our own script by its hash, no other, and no request."""
    page, style, script = (
        (PAGE_PARTS / f"viewer_page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for mark, text in (("SCRIPT_HASH", digest), ("STYLE", style), ("SCRIPT", script)):
        page = page.replace(f"{{{{{mark}}}}}", text)
    return page.partition("{{DATA}}")


def write_page(files: Sequence[Path], tokenizer: Any, output: Path, *, trust_pickle: bool = False) -> int:
    """Writes the page, whole or not at all, and returns how many trajectories it holds.

    Raises ValueError with one sentence that names the file and line that cannot be used, OSError for a file that
    cannot be read or written.
    """
    total = sum(file.stat().st_size for file in files) // 1000
    texts = TokenTexts(tokenizer)
    names = _short_names(files)
    unfinished = output.with_name(f"{output.name}.unfinished-{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished.open("w", encoding="utf-8") as page, Progress("reading", total, "kB") as progress:
            writer, read = PageWriter(page, texts), 0
            for file in files:
                for fields, size, where in read_samples(file, trust_pickle=trust_pickle):
                    try:
                        writer.add(*trajectory(fields, names[file], texts))
                    except ValueError as error:
                        raise ValueError(f"{where}: {error}.") from None
                    read += size
                    progress.update(read // 1000 - progress.done)
            count = writer.finish()
        if not count:
            raise ValueError("There is no trajectory in these files.")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _short_names(files: Iterable[Path]) -> dict[Path, str]:
    """Each file's name without its ending, or its path where several have the same."""
    stems = [file.stem for file in files]
    return {file: file.stem if stems.count(file.stem) == 1 else str(file) for file in files}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local model folder. Raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; --tokenizer takes the folder of the model that was rolled out.")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    from transformers import AutoTokenizer  # seconds: not before the arguments are known to be sound

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no tokenizer: {str(error).splitlines()[0]}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="search-r1 view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="folder of a demo run or an evaluation, dumps (.pt), JSONL")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of the model that was rolled out (default: the run's own)"
    )
    parser.add_argument("--output", type=Path, help="default: trajectories.html, in the folder if one was given")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="load dumps with any Python object; runs their code"
    )
    args = parser.parse_args(argv)
    try:
        files = [path / "trajectories.jsonl" if path.is_dir() else path for path in args.files]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"There is no file {', '.join(missing)}.")
        folder = next((path for path in args.files if path.is_dir()), None)
        tokenizer = args.tokenizer or (tokenizer_of(folder) if folder else tokenizer_of(files[0].parent))
        if tokenizer is None:
            raise ValueError("Give --tokenizer, the folder of the model that was rolled out.")
        output = args.output or (folder or Path()) / "trajectories.html"
        print("loading the tokenizer", flush=True)
        with Progress("loading the tokenizer"):
            loaded = load_tokenizer(tokenizer)
        count = write_page(files, loaded, output, trust_pickle=args.trust_pickle)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{short(output)}: {count:,} trajectories, {output.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
