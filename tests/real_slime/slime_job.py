"""A real job of slime's without a GPU: the launch scripts, Ray, slime's own train.py, SGLang on the CPU.

Real: both scripts, tmux, Ray, slime's argument parsers and RolloutManager, sglang-router, SGLang, the retriever, the
token router, SmolLM2-135M. Missing: Megatron's arithmetic and the weight update, which slime leaves out under its own
`--debug-rollout-only`.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from few_shot import write_corpus, write_prompt_data, write_questions
from launch_helpers import COPIED, free_ports

import oai_format_data_preprocess
from demo.models import TOOL_TEMPLATE, encoder_folder, policy_folder
from demo.retriever_process import RetrieverProcess, build_index
from search_rollout.config import VALID_PAIRS
from search_rollout.protocols.prompts import PromptMode

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
VENV = ROOT / ".venv-slime"
SCRIPT, WRAPPER = "run_qwen2.5_3B.sh", "run_qwen2.5_3B_with_retrieval.sh"
MANUAL = [pair for pair in VALID_PAIRS if pair[1] == "manual"]
JOB_LIMIT_S = 3600.0  # a job takes 2 to 3 minutes on two idle cores
NO_GPU = "torch.cuda.is_available() and torch.cuda.device_count() > 0"  # in slime's HEAD; older ones do not ask
CPU_ENGINE = [
    *("--sglang-device", "cpu", "--sglang-dtype", "bfloat16", "--sglang-attention-backend", "torch_native"),
    *("--sglang-sampling-backend", "pytorch", "--sglang-grammar-backend", "none", "--sglang-disable-overlap-schedule"),
    *("--sglang-max-total-tokens", "20000", "--sglang-mem-fraction-static", "0.3"),
]


class Job(NamedTuple):
    """A job of the training script that has ended."""

    folder: Path  # with its dumps, N.pt
    status: int
    output: str


class Workplace:
    """A copy of the plugin and of slime, a model, prompt data, a corpus with its index; and jobs run there.

    `temporary` is a folder with a short name: Ray puts sockets into it.
    """

    def __init__(self, folder: Path, temporary: Path, slime: Path, megatron: Path) -> None:
        self.folder = folder
        self.temporary = temporary
        self.plugin = folder / "my plugin"
        self.slime = folder / "slime"
        self.model = folder / "SmolLM2-135M-Instruct"
        self.corpus = folder / "corpus.jsonl"
        self.reference = folder / "reference"
        _copy_plugin(self.plugin)
        _copy_slime(slime, self.slime)
        _link_model(self.model)
        self.reference.mkdir()
        (self.reference / "latest_checkpointed_iteration.txt").write_text("release")  # slime reads no more of it
        modes: tuple[PromptMode, ...] = ("generate", "chat")
        for mode in modes:
            write_prompt_data(self.prompt_data(mode), mode)
        write_corpus(self.corpus)
        self._write_evaluation()
        self.index = folder / "corpus.index"
        build_index(self.corpus, self.index, encoder_folder())
        self.environment = self._settings(megatron)

    def _settings(self, megatron: Path) -> dict[str, str]:
        """The environment of the launch scripts: small jobs, and nothing of the user's own."""
        ray, dashboard, retriever, router = free_ports(4)
        return {
            "PATH": f"{VENV / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "PYTHON": str(VENV / "bin" / "python"),
            "HOME": str(self.temporary),  # Ray writes its token there
            "TMPDIR": str(self.temporary),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "SLIME_DIR": str(self.slime),
            "MEGATRON_DIR": str(megatron),
            "MODEL_ARGS_FILE": str(HERE / "smollm2.sh"),
            "HF_CHECKPOINT": str(self.model),
            "REF_LOAD": str(self.reference),
            "LOG_DIR": str(self.folder / "logs"),
            "NUM_GPUS": "1",  # Ray is told so; nothing looks for one
            "RAY_PORT": str(ray),
            "RAY_DASHBOARD_PORT": str(dashboard),
            "EVAL_CONFIG": str(self.folder / "eval.yaml"),
            "SEARCH_BACKEND": "local",
            "RETRIEVAL_SERVER_URL": f"http://127.0.0.1:{retriever}",
            "TOKEN_ROUTER_URL": f"http://127.0.0.1:{router}",
            "CORPUS_PATH": str(self.corpus),
            "INDEX_PATH": str(self.index),
            "RETRIEVER_NAME": "minilm",
            "RETRIEVER_MODEL": str(encoder_folder()),
            "START_TIMEOUT_S": "600",
            "TMUX_SESSION": f"real-slime-{os.getpid()}",
            "NUM_ROLLOUT": "1",
            "ROLLOUT_BATCH_SIZE": "2",
            "N_SAMPLES_PER_PROMPT": "4",
            "ROLLOUT_MAX_RESPONSE_LEN": "64",
            "MAX_TOKENS_PER_GPU": "1600",
            "SEARCH_R1_MAX_OBS_TOKENS": "200",
            "SEARCH_R1_ANSWER_RESERVE_TOKENS": "64",
            "PREFLIGHT": "0",  # it looks for GPUs
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": "1",  # more of them wait for each other in loops
            "HF_HUB_OFFLINE": "1",
            "RAY_memory_monitor_refresh_ms": "0",  # other programs may need most of the machine's memory
            "RAY_health_check_timeout_ms": "600000",  # on a busy machine Ray takes its own node for dead
        }

    def _write_evaluation(self) -> None:
        """eval.yaml as users make it: the questions, here with their worked examples, and the closed-book control."""
        questions = self.folder / "questions.jsonl"
        write_questions(questions)
        arguments = ["--input", str(questions), "--splits", "test", "--local_dir", str(self.folder), "--format", "xml"]
        assert oai_format_data_preprocess.main(arguments) == 0
        write_prompt_data(self.folder / "eval" / "capitals.parquet", "generate")

    def prompt_data(self, api_mode: str) -> Path:
        """slime's prompt data of an API mode."""
        return self.folder / f"{api_mode}.parquet"

    def variables_of(self, pair: tuple[str, str]) -> dict[str, str]:
        """The settings of a row of the mode table: LLM_API_MODE and TOKEN_TRACKING_MODE."""
        return {
            "LLM_API_MODE": pair[0],
            "TOKEN_TRACKING_MODE": pair[1],
            "PROMPT_DATA": str(self.prompt_data(pair[0])),
        }

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a launch script to its end; over the time limit, it is told to stop.

        stdout holds stderr too. It is also kept in the folder, since a failed test shows its end only.
        """
        with tempfile.NamedTemporaryFile("w+", dir=self.folder, prefix=f"{script}.", delete=False) as output:
            process = subprocess.Popen(
                [str(self.plugin / script), *arguments],
                env={**self.environment, **variables},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                process.wait(timeout=JOB_LIMIT_S)
            finally:
                process.terminate()
                process.wait()
            output.seek(0)
            return subprocess.CompletedProcess(process.args, process.returncode, output.read())

    def dry_run(self, *arguments: str, **variables: str) -> str:
        """What a dry run of the training script prints."""
        command = [str(self.plugin / "run_qwen2.5_3B.sh"), "--dry-run", *arguments]
        environment = {**self.environment, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    def python(self, program: str, *arguments: str, **variables: str) -> str:
        """Runs a program of this folder as slime's workers run: their Python, their import path. Returns its output."""
        path = os.pathsep.join([self.environment["MEGATRON_DIR"], str(self.plugin), str(self.slime)])
        command = [str(VENV / "bin" / "python"), "-W", "ignore", str(HERE / program), *arguments]
        environment = {**self.environment, "PYTHONPATH": path, **variables}
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=JOB_LIMIT_S
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    @contextmanager
    def retriever(self) -> Iterator[str]:
        """The real retriever's URL, for RETRIEVAL_SERVER_URL; the tmux wrapper starts one of its own."""
        log = self.folder / "retriever.log"
        with RetrieverProcess(self.corpus, self.index, encoder_folder(), log) as retriever:
            yield retriever.url

    def await_session_end(self) -> None:
        """Waits until the wrapper's tmux session has ended with its last program."""
        session = f"={self.environment['TMUX_SESSION']}"
        self._await(lambda: not self._tmux("has-session", "-t", session), "the tmux session does not end")

    def await_file(self, path: Path, unless: Callable[[], bool] = lambda: False) -> None:
        """Waits for a file that a job writes, or until `unless` returns True: then the job has ended without it."""
        self._await(lambda: path.is_file() or unless(), f"{path} was not written")

    def stop_session(self) -> None:
        """Ends the wrapper's session, if a test has left it running: contain.py then stops all programs."""
        self._tmux("kill-session", "-t", f"={self.environment['TMUX_SESSION']}")
        self._await(lambda: not self.processes(), "processes are left")

    def _tmux(self, *arguments: str) -> bool:
        return subprocess.run(["tmux", *arguments], env=self.environment, capture_output=True).returncode == 0

    def _await(self, is_so: Callable[[], bool], trouble: str) -> None:
        deadline = time.monotonic() + JOB_LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, trouble
            time.sleep(1)

    def processes(self) -> dict[int, str]:
        """The command lines of all processes that jobs of this workplace started, by process id."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(folder.name)] = line
        return {number: line for number, line in found.items() if line}  # a zombie has none

    def kill(self, program: str) -> None:
        """Kills the one process of these jobs whose command line contains `program`."""
        [number] = [number for number, line in self.processes().items() if program in line]
        os.kill(number, signal.SIGKILL)

    def remove_rays_files(self) -> None:
        """Ray's logs and its token; they are of no use to the next job."""
        for name in ("ray", ".ray"):
            shutil.rmtree(self.temporary / name, ignore_errors=True)


def arguments_for(dumps: Path) -> list[str]:
    """What makes a job for a CPU of the training; `dumps` is where its samples go."""
    return ["--", "--debug-rollout-only", "--save-debug-rollout-data", f"{dumps}/{{rollout_id}}.pt", *CPU_ENGINE]


def samples_of(dump: Path) -> list[dict[str, Any]]:
    """The samples of a file of slime's --save-debug-rollout-data."""
    return torch.load(dump, weights_only=False)["samples"]


def job_of(dry_run: str) -> tuple[list[str], dict[str, str]]:
    """The arguments of train.py, and the variables of the job, that a dry run prints."""
    words = shlex.split(dry_run.replace("\\\n", " "))
    words = words[words.index("submit") :]
    variables = json.loads(words[words.index("--runtime-env-json") + 1])["env_vars"]
    script = next(number for number, word in enumerate(words) if word.endswith("train.py"))
    return words[script + 1 :], variables


def _copy_plugin(folder: Path) -> None:
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    # The retriever's environment, as its README installs it: here it is the one of these tests.
    python = folder / "local_dense_retriever" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)


def _copy_slime(source: Path, folder: Path) -> None:
    """slime, for which this machine has a GPU: HEAD does not map ids of GPUs where torch sees none."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git", "docs", "imgs"))
    for name in ("__init__.py", "cuda.py"):
        file = folder / "slime" / "utils" / "accelerator" / name
        if file.is_file():
            text = file.read_text()
            assert NO_GPU in text, f"slime asks for a GPU in another way: see {file}"
            file.write_text(text.replace(NO_GPU, "True"))


def _link_model(folder: Path) -> None:
    """SmolLM2 with a chat template that knows tools."""
    folder.mkdir()
    for file in policy_folder(ROOT / ".cache").iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file)
    shutil.copy(TOOL_TEMPLATE, folder / "chat_template.jinja")
