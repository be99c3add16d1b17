"""Checks that the server's packages, index and corpus are present, without loading them.

python local_dense_retriever/check_installation.py INDEX CORPUS [--verify]
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.downloaded import check_downloaded, index_file
from local_dense_retriever.errors import InputError, run_command

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("torch", "onnxruntime"), ("transformers", "tokenizers"), ("faiss",), ("fastapi",), ("uvicorn",), ("tqdm",)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if something is missing or damaged."""
    parser = argparse.ArgumentParser(description="Check the server's packages, index and corpus.")
    parser.add_argument("paths", nargs=2, metavar=("INDEX", "CORPUS"))
    parser.add_argument("--verify", action="store_true", help="check the SHA-256 sums of downloaded files too")
    args = parser.parse_args(argv)
    return run_command(lambda: check(args.paths, args.verify))


def check(paths: list[str], sums: bool) -> None:
    """Raises InputError if a package or file is missing, or if a file is truncated or, with `sums`, damaged."""
    if packages := missing_packages():
        raise InputError(
            f"{sys.executable} lacks {', '.join(packages)}: install {FOLDER / 'requirements.txt'} into "
            f"{FOLDER / '.venv'} (see README.md there)"
        )
    from local_dense_retriever.flat_file import read_flat_header  # imports numpy

    if missing := [path for path in paths if not Path(path).exists()]:
        raise InputError(
            f"there is no file {' and no file '.join(missing)}: download or build them (see README.md in {FOLDER}), "
            "or set INDEX_PATH and CORPUS_PATH"
        )
    for path in paths:
        check_downloaded(path, sums)
    if (index := index_file(paths[0])).is_file():
        read_flat_header(index)


def missing_packages() -> list[str]:
    """The packages that are missing; where one has a substitute, it is missing without either."""
    return [names[0] for names in PACKAGES if not any(map(find_spec, names))]


if __name__ == "__main__":
    sys.exit(main())
