"""Shows trajectories in a browser: all runs below a folder, or one page that opens from disk.

    search-r1 view --serve runs/                        browse all runs, finished or not; compare two; Ctrl-C stops
    search-r1 view --serve runs/ --engine URL --search local:URL     also continue from a turn with other passages

    search-r1 view runs/demo-…                          write a page for a demo run: RUN/trajectories.html
    search-r1 view runs/eval-step100                    write a page for an evaluation
    search-r1 view runs/eval-a runs/eval-b              write a page that compares two evaluations
    search-r1 view dumps/*.pt --tokenizer MODEL_DIR     write a page for slime's debug dumps or JSONL files

The page contacts no server but the one that it came from. It gets the text of trajectories as JSON, never as HTML, and
its script inserts it only as text.
"""

import argparse
import base64
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evaluation.options import add_sample_options, command_parser
from evaluation.page_data import Trajectories, pack
from evaluation.page_parts import OFFLINE_POLICY, page
from evaluation.records import TRAJECTORIES, tokenizer_of, whole_file
from evaluation.run_list import Run
from evaluation.sample_files import read_all, sample_files_of
from evaluation.terminal import exit_code, short


def write_page(files: Sequence[Path], tokenizer: Any, output: Path, *, trust_pickle: bool = False) -> int:
    """Writes the page atomically and returns its number of trajectories.

    Raises ValueError, in one sentence with file and line, for a sample that cannot be used, and OSError for a file
    that cannot be read or written.
    """
    names = _short_names(files)
    found = Trajectories(tokenizer)
    for sample in read_all(files, "reading", trust_pickle=trust_pickle):
        found.add(sample, names[sample.path])
    if not found.rows:
        raise ValueError("There is no trajectory in these files.")
    blocks = {f"chunk-{number}": found.chunk(number) for number in range(len(found.starts))}
    blocks["index"] = pack(found.index(Run("", files[0].parent).model()))
    data = "\n".join(
        f'<script type="text/plain" id="{name}">{base64.b64encode(packed).decode()}</script>'
        for name, packed in blocks.items()
    )
    with whole_file(output) as unfinished:
        unfinished.write_text(page(OFFLINE_POLICY, data), encoding="utf-8")
    return len(found.rows)


def _short_names(files: Iterable[Path]) -> dict[Path, str]:
    """Each run's folder, or each file's name without its extension; the whole path if several are equal."""
    names = {file: file.absolute().parent.name if file.name == TRAJECTORIES else file.stem for file in files}
    taken = list(names.values())
    return {file: name if taken.count(name) == 1 else str(file) for file, name in names.items()}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local model folder. Raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; --tokenizer takes the folder of the model that was rolled out.")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    from transformers import AutoTokenizer  # slow to import, so check the arguments first

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no tokenizer: {str(error).splitlines()[0]}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, or serves it until Ctrl-C; returns the exit code."""
    parser = command_parser("view", __doc__)
    add_sample_options(parser, "; to serve: one folder")
    parser.add_argument("--output", type=Path, help="default: trajectories.html, in the folder if one was given")
    serve = parser.add_argument_group("run browser")
    serve.add_argument("--serve", action="store_true", help="serve all runs below a folder until Ctrl-C")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    serve.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    serve.add_argument("--engine", metavar="URL", help="http://HOST:PORT of an engine that continues forked rollouts")
    serve.add_argument("--search", metavar="local:URL", help="retriever for changed queries (default: none)")
    serve.add_argument("--temperature", type=float, default=0.0, help="temperature for --engine (0: greedy)")
    serve.add_argument("--max_response_len", type=int, default=512, help="maximum tokens per engine call (512)")
    args = parser.parse_args(argv)
    return exit_code(lambda: _serve(args) if args.serve else _write(args))


def _write(args: argparse.Namespace) -> int:
    files = sample_files_of(args.files)
    folder = next((path for path in args.files if path.is_dir()), None)
    tokenizer = args.tokenizer or tokenizer_of(folder or files[0].parent)
    if tokenizer is None:
        raise ValueError("Give --tokenizer, the folder of the model that was rolled out.")
    output = args.output or (folder or Path()) / "trajectories.html"
    print("loading the tokenizer", flush=True)
    count = write_page(files, load_tokenizer(tokenizer), output, trust_pickle=args.trust_pickle)
    print(f"{short(output)}: {count:,} trajectories, {output.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return 0


def _serve(args: argparse.Namespace) -> int:
    from evaluation.fork_engine import ForkEngine
    from evaluation.server_process import check_listening
    from evaluation.view_server import Browser, serve

    if len(args.files) != 1 or not args.files[0].is_dir():
        raise ValueError(f"--serve takes one folder of runs; {short(args.files[0])} is not a folder.")
    engine = None
    if args.engine:
        engine = ForkEngine(args.engine, args.search, args.temperature, args.max_response_len)
        engine.check()
        check_listening("engine", args.engine)
    browser = Browser(
        args.files[0], load_tokenizer, tokenizer=args.tokenizer, engine=engine, trust_pickle=args.trust_pickle
    )
    serve(browser, args.host, args.port)
    print("stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
