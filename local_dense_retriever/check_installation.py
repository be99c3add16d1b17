"""Checks that the server's packages, index and corpus are present, without loading them.

python local_dense_retriever/check_installation.py INDEX CORPUS [--verify]
"""

import argparse
import importlib.metadata
import re
import sys
from pathlib import Path

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.downloaded import check_downloaded, index_file
from local_dense_retriever.errors import InputError

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if something is missing or damaged."""
    parser = argparse.ArgumentParser(description="Check the server's packages, index and corpus.")
    parser.add_argument("paths", nargs=2, metavar=("INDEX", "CORPUS"))
    parser.add_argument("--verify", action="store_true", help="check the SHA-256 sums of downloaded files too")
    args = parser.parse_args(argv)
    try:
        check_packages()
        check_files(args.paths, args.verify)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_packages() -> None:
    """Raises InputError if one is missing."""
    if packages := missing_packages():
        raise InputError(
            f"{sys.executable} lacks {', '.join(packages)}: install {REQUIREMENTS} into "
            f"{REQUIREMENTS.parent / '.venv'} (see README.md there)"
        )


def check_files(paths: list[str], sums: bool) -> None:
    """Raises InputError if a file is missing or truncated or, with `sums`, damaged. Needs the packages."""
    from local_dense_retriever.flat_file import read_flat_header

    if missing := [path for path in paths if not Path(path).exists()]:
        raise InputError(
            f"there is no file {' and no file '.join(missing)}: download or build them (see README.md in "
            f"{REQUIREMENTS.parent}), or set INDEX_PATH and CORPUS_PATH"
        )
    for path in paths:
        check_downloaded(path, sums)
    index = index_file(paths[0])
    if index.is_file():
        read_flat_header(index)


def missing_packages() -> list[str]:
    """The required packages of requirements.txt that are missing and have no substitute; any build of FAISS will do."""
    installed = {_normal(found.metadata["Name"] or "") for found in importlib.metadata.distributions()}
    faiss = any(name.startswith("faiss-") for name in installed)
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    missing = []
    for line in lines:
        name, other = (re.search(pattern, line) for pattern in (r"^[\w.-]+", r"(?<=# or )[\w-]+"))
        if name is None or "# optional" in line or (faiss and name[0].startswith("faiss-")):
            continue
        if not {_normal(found[0]) for found in (name, other) if found} & installed:
            missing.append(name[0])
    return missing


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
