"""Starts servers as child processes, waits until they are ready, and stops them; for example an evaluation's engine."""

import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
ENGINES = {
    "sglang": "-m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port}",
    "demo": "-m demo.engine_server --model {model} --port {port}",
}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignores http_proxy
ENGINE_TIMEOUT_S = 1800.0  # large models load slowly from network disks


@dataclass
class ServerProcess:
    """`with ServerProcess(…) as server: server.url`; stops only the process that it started."""

    name: str  # for messages
    command: Sequence[str]
    port: int
    log: Path
    timeout_s: float
    ready: str = "/health"  # the path that must answer 200 within `timeout_s`
    cwd: Path | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=null, cwd=self.cwd)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process id, once the server is started."""
        return self._process.pid

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with DIRECT.open(f"{self.url}{self.ready}", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        tail = self.log.read_text(errors="replace").strip()[-500:]
        raise RuntimeError(f"The {self.name} did not start; its log {self.log} ends with:\n{tail}")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def engine_process(kind: str, model: str, log: Path, extra: str = "") -> ServerProcess:
    """An engine of ENGINES that serves `model`; `extra` holds further arguments for it."""
    port = free_port()
    parts = [part.format(model=model, port=port) for part in shlex.split(ENGINES[kind])]
    return ServerProcess("engine", [sys.executable, *parts, *shlex.split(extra)], port, log, ENGINE_TIMEOUT_S, cwd=ROOT)


def free_port() -> int:
    """A currently free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_listening(name: str, url: str) -> None:
    """Raises ValueError if nothing listens at `url`: better now than after a minute of retries per question."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"The {name} at {url} cannot be reached: {error}.") from error
