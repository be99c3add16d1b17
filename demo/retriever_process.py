"""Runs the real retriever as a separate process: builds its index once, starts and stops the server."""

import contextlib
import hashlib
import io
import subprocess
import sys
from pathlib import Path

from evaluation.server_process import ServerProcess, free_port
from evaluation.terminal import Progress

SCRIPTS = Path(__file__).resolve().parent.parent / "local_dense_retriever"
START_TIMEOUT_S = 120.0


def index_path(cache: Path, corpus: Path) -> Path:
    """The path of a corpus's index. Its name depends on the text, so another corpus never gets this index."""
    try:
        digest = hashlib.sha256(corpus.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ValueError(f"Cannot read the corpus {corpus}: {error.strerror}.") from error
    return cache / f"corpus-{digest}.index"


def build_index(corpus: Path, index: Path, encoder: Path) -> None:
    """Encodes the corpus into a FAISS index, unless it exists. Raises RuntimeError with the tool's own message.

    The tool's progress is passed through; its `error:` line becomes the exception's message.
    """
    if index.is_file():  # its name depends on the corpus
        return
    command = [sys.executable, str(SCRIPTS / "build_index.py"), "--corpus_path", str(corpus)]
    command += ["--index_path", str(index), "--retriever_name", "minilm", "--retriever_model", str(encoder)]
    reason = "The index could not be built; the message above says why."
    is_terminal = sys.stderr.isatty()
    waiting = contextlib.nullcontext() if is_terminal else Progress("building the index")
    with waiting, subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        # newline="": a progress bar's \r ends a line and is preserved.
        lines = io.TextIOWrapper(process.stderr, encoding="utf-8", errors="replace", newline="")
        try:
            for line in lines:
                if line.startswith("error: "):
                    reason = line.removeprefix("error: ").strip()
                elif is_terminal or "%|" not in line:  # progress bars are for terminals
                    sys.stderr.write(line)
                    sys.stderr.flush()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise RuntimeError(reason)


class RetrieverProcess(ServerProcess):
    """`with RetrieverProcess(…) as retriever: retriever.port`."""

    def __init__(self, corpus: Path, index: Path, encoder: Path, log: Path) -> None:
        port = free_port()
        command = [sys.executable, str(SCRIPTS / "retrieval_server.py"), "--port", str(port)]
        command += ["--corpus_path", str(corpus), "--index_path", str(index)]
        command += ["--retriever_name", "minilm", "--retriever_model", str(encoder)]
        super().__init__("retriever", command, port, log, START_TIMEOUT_S, ready="/ready")
