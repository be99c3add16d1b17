"""A checkout with the launch scripts, a slime and a `ray` beside it: stand-ins are only those of launch_fakes.py."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAKES = ROOT / "tests" / "launch_fakes.py"
COPIED = ["run_qwen2.5_3B.sh", "run_qwen2.5_3B_with_retrieval.sh", "launch", "preflight", "search_rollout"]
COPIED += ["token_router", "local_dense_retriever", "generate_with_search.py", "qa_em_format.py"]

OPTIONAL_FLAGS = [  # that an older slime lacks
    "--custom-rollout-log-function-path",
    "--dynamic-sampling-filter-path",
    "--rollout-all-samples-process-path",
    "--log-multi-turn",
    "--log-passrate",
]


class Checkout:
    """A copy of what the scripts need, in a folder with blanks in its name, and what calls of them left behind."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "my plugin"
        self.records = folder / "records"
        self.slime = folder / "the slime"
        self.temporary = folder / "temporary"
        programs = folder / "programs"
        self.slime_arguments = self.slime / "slime/utils/arguments.py"
        in_slime = self.slime / "scripts/models", self.slime_arguments.parent
        for new in (self.path, self.records, self.temporary, programs, *in_slime):
            new.mkdir(parents=True)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.path / name)
        (self.slime / "scripts/models/qwen2.5-3B.sh").write_text(
            'MODEL_ARGS=(--num-layers 36 --normalization "RMSNorm")\n'
        )
        self.slime_arguments.write_text("".join(f'parser.add_argument("{flag}")\n' for flag in OPTIONAL_FLAGS))
        self.slime_rollout = self.slime / "slime/rollout.py"
        self.slime_rollout.write_text('headers = {"X-SMG-Routing-Key": sample.session_id}\n')
        self.install_router("round_robin", "consistent_hashing", "cache_aware")
        self.slime_evaluation = self.slime_arguments.with_name("eval_config.py")
        self.slime_evaluation.write_text("    custom_rm_path: str\n    custom_generate_function_path: str\n")
        self.slime_losses = self.slime / "slime/backends/megatron_utils/loss.py"
        self.slime_losses.parent.mkdir(parents=True)
        self.slime_losses.write_text("def vanilla_tis_function(\ndef icepop_function(\n")
        (self.slime / "train.py").write_text(self._program("train"))
        (programs / "ray").write_text(f"#!{sys.executable}\n" + self._program("ray"))
        (programs / "ray").chmod(0o755)
        self.python = programs / "python3"  # the one of these tests, without a virtual environment's prefix in PATH
        self.python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        self.python.chmod(0o755)
        ports = free_ports(4)
        self.dashboard_port, self.retriever_port, self.router_port, self.other_port = ports
        self.environment = {
            "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(self.temporary),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RECORDS": str(self.records),
            "SLIME_DIR": str(self.slime),
            "NUM_GPUS": "2",
            "RAY_DASHBOARD_PORT": str(self.dashboard_port),
            "RETRIEVAL_SERVER_URL": f"http://localhost:{self.retriever_port}",
            "TOKEN_ROUTER_URL": f"http://127.0.0.1:{self.router_port}",
            "PREFLIGHT": "0",
        }

    @staticmethod
    def _program(name: str) -> str:
        """A script that runs one of the fakes as if it were this file."""
        return f"import runpy, sys\nsys.argv[1:1] = [{name!r}]\nrunpy.run_path({str(FAKES)!r}, run_name='__main__')\n"

    def install_router(self, *policies: str) -> None:
        """An sglang-router whose command line takes these policies, in place of any that is installed."""
        package = self.path / "sglang_router"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "launch_router.py").write_text(
            "class RouterArgs:\n"
            "    def add_cli_args(parser):\n"
            f"        parser.add_argument('--policy', choices={list(policies)})\n"
        )

    def use_fake_retriever(self) -> None:
        """In place of the real one; the corpus and the index are there, but nothing reads them."""
        folder = self.path / "local_dense_retriever"
        (folder / "retrieval_server.py").write_text(self._program("retriever"))
        for name in ("CORPUS_PATH", "INDEX_PATH"):
            (folder / name).write_text("nothing reads this\n")
            self.environment[name] = str(folder / name)

    def run(self, script: str, *arguments: str, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess:
        """Runs a script to its end, without a terminal."""
        return subprocess.run(
            [str(self.path / script), *arguments],
            env={**self.environment, **variables},
            cwd=self.path.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextlib.contextmanager
    def start(self, script: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen]:
        """A script that runs; its output is in .output. Ctrl-C in its terminal is `interrupt`."""
        with (self.records.parent / "output").open("w+") as output:
            process = subprocess.Popen(
                # under nohup these tests ignore SIGHUP, and so would bash
                ["env", "--default-signal=HUP", str(self.path / script), *arguments],
                env={**self.environment, **variables},
                cwd=self.path.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait(timeout=60)

    @property
    def output(self) -> str:
        return (self.records.parent / "output").read_text()

    def calls(self, kind: str) -> list[dict[str, Any]]:
        """How a stand-in was called, first call first."""
        return [json.loads(path.read_text()) for path in sorted(self.records.glob(f"{kind}-*.json"))]

    def processes(self) -> list[str]:
        """The command lines of all processes that were started from this checkout, whoever is their parent."""
        mark = f"RECORDS={self.records}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return [line for line in found if line]  # a zombie has none


def interrupt(process: subprocess.Popen) -> None:
    """What Ctrl-C in its terminal does: SIGINT to the whole foreground group."""
    os.killpg(process.pid, signal.SIGINT)


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def answers(port: int) -> bool:
    """Whether something listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def eventually(is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def flags_of(argv: list[str]) -> dict[str, str]:
    """Flags of a command line with what stands behind each, joined by blanks; the last one of a name wins."""
    flags: dict[str, list[str]] = {}
    current: list[str] = []
    for argument in argv:
        if argument.startswith("--"):
            current = flags[argument] = []
        else:
            current.append(argument)
    return {flag: " ".join(values) for flag, values in flags.items()}
