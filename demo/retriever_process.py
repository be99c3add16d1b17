"""The real retriever as a process of its own: its index is built once, the server is started, awaited and stopped."""

import hashlib
import io
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "local_dense_retriever"
START_TIMEOUT_S = 120.0


def index_path(cache: Path, corpus: Path) -> Path:
    """Where a corpus's index is kept: under a name that changes with its text, so that no other corpus's is taken."""
    try:
        digest = hashlib.sha256(corpus.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ValueError(f"Cannot read the corpus {corpus}: {error.strerror}.") from error
    return cache / f"corpus-{digest}.index"


def build_index(corpus: Path, index: Path, encoder: Path) -> None:
    """Encodes the corpus into a FAISS index, unless it is there already. Raises RuntimeError with the tool's words.

    The tool's progress is shown as it comes; only its `error:` line is held back, to be the exception's message.
    """
    command = [sys.executable, str(SCRIPTS / "build_index.py"), "--corpus_path", str(corpus)]
    command += ["--index_path", str(index), "--retriever_name", "minilm", "--retriever_model", str(encoder)]
    reason = "The index could not be built; the message above says why."
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        # newline="": a progress bar's \r ends a line, and is kept.
        lines = io.TextIOWrapper(process.stderr, encoding="utf-8", errors="replace", newline="")
        try:
            for line in lines:
                if line.startswith("error: "):
                    reason = line.removeprefix("error: ").strip()
                else:
                    sys.stderr.write(line)
                    sys.stderr.flush()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise RuntimeError(reason)


class RetrieverProcess:
    """`with RetrieverProcess(…) as retriever: retriever.port`; only this very process is ever stopped."""

    def __init__(self, corpus: Path, index: Path, encoder: Path, log: Path) -> None:
        self.port = free_port()
        self._log = log
        self._command = [sys.executable, str(SCRIPTS / "retrieval_server.py"), "--port", str(self.port)]
        self._command += ["--corpus_path", str(corpus), "--index_path", str(index)]
        self._command += ["--retriever_name", "minilm", "--retriever_model", str(encoder)]

    def __enter__(self) -> "RetrieverProcess":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _wait_until_ready(self) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with direct.open(f"http://127.0.0.1:{self.port}/ready", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        tail = self._log.read_text(errors="replace").strip()[-500:]
        raise RuntimeError(f"The retriever did not start; its log {self._log} ends with:\n{tail}")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
