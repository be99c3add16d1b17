"""Says in one line whether this Python and these files are what the server needs; loads nothing.

python local_dense_retriever/check_installation.py INDEX CORPUS
"""

import importlib.metadata
import re
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


def main(paths: list[str]) -> int:
    """Returns the exit status: 1 if something is missing."""
    missing = [path for path in paths if not Path(path).exists()]
    if packages := missing_packages():
        print(
            f"error: {sys.executable} lacks {', '.join(packages)}: install {REQUIREMENTS} into "
            f"{REQUIREMENTS.parent / '.venv'} (see README.md there)",
            file=sys.stderr,
        )
    elif missing:
        print(
            f"error: there is no file {' and no file '.join(missing)}: download or build them (see README.md in "
            f"{REQUIREMENTS.parent}), or set INDEX_PATH and CORPUS_PATH",
            file=sys.stderr,
        )
    return 1 if packages or missing else 0


def missing_packages() -> list[str]:
    """Those of requirements.txt that are not installed; any build of FAISS will do."""
    installed = {_normal(found.metadata["Name"] or "") for found in importlib.metadata.distributions()}
    faiss = any(name.startswith("faiss-") for name in installed)
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    wanted = [match[0] for line in lines if (match := re.match(r"[\w.-]+", line))]
    return [name for name in wanted if _normal(name) not in installed and not (faiss and name.startswith("faiss-"))]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
