"""run_qwen2.5_3B_with_retrieval.sh in a real tmux: what it starts, what it waits for, and what it leaves alone."""

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_helpers import ROOT, Checkout, answers, eventually, flags_of, interrupt
from retriever_fakes import minilm_folder
from router_fakes import TOKENIZER

from local_dense_retriever import build_index

UP = "run_qwen2.5_3B_with_retrieval.sh"
SESSION = "slime-search-r1"
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
slow = pytest.mark.slow


class Launcher(Checkout):
    """A checkout with a tmux server of its own, and a bystander that must survive."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        super().__init__(folder)
        self.environment |= {"TMUX_TMPDIR": str(sockets), "TRAIN": "on"}
        self.logs = self.path / "logs"

    def tmux(self, *arguments: str) -> str:
        run = subprocess.run(["tmux", *arguments], env=self.environment, capture_output=True, text=True, check=False)
        return run.stdout

    def session_exists(self) -> bool:
        return SESSION in self.tmux("list-sessions", "-F", "#{session_name}").splitlines()

    def windows(self) -> list[str]:
        return self.tmux("list-windows", "-t", f"={SESSION}:", "-F", "#{window_index} #{window_name}").splitlines()

    def log(self, kind: str) -> str:
        [path] = self.logs.glob(f"{kind}_*.log")
        assert re.fullmatch(rf"{kind}_\d{{8}}_\d{{6}}\.log", path.name)
        return path.read_text()

    def run_up(self, *arguments: str, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess:
        """`up` until training has been called."""
        run = self.run(UP, *(arguments or ("up",)), timeout=timeout, **variables)
        assert run.returncode == 0, run.stderr
        eventually(lambda: self.calls("train"))
        return run

    def error_of_up(self, **variables: str) -> str:
        """What `up` says if it does not work; nothing is left of it."""
        run = self.run(UP, "up", **variables)
        assert run.returncode == 1
        assert self.processes() == [] and not self.session_exists()
        return run.stderr

    def assert_all_has_ended(self) -> None:
        eventually(lambda: not self.session_exists(), 40)
        eventually(lambda: self.processes() == [], 40)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    sockets = Path(tempfile.mkdtemp(prefix="tmux-"))  # short: a socket's path has 108 bytes
    launcher = Launcher(tmp_path, sockets)
    launcher.use_fake_retriever()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield launcher
    finally:
        launcher.run(UP, "down", timeout=120)  # refused where the session is not ours
        survived = bystander.poll() is None
        bystander.kill()
        bystander.wait()
        launcher.tmux("kill-server")
        shutil.rmtree(sockets)
    assert survived, "a python process that is none of ours was killed"


@contextlib.contextmanager
def retriever_at(launcher: Launcher, port: int, host: str = "127.0.0.1", **variables: str) -> Iterator[None]:
    """A retriever that somebody else has started; it must be left running."""
    server = launcher.path / "local_dense_retriever" / "retrieval_server.py"
    environment = {**launcher.environment, **variables, "RECORDS": str(launcher.records.parent)}
    command = [str(launcher.python), str(server), "--host", host, "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: answers(port))
            yield
            assert process.poll() is None
        finally:
            process.kill()


# --- prerequisites ---


def test_a_missing_tmux_is_reported(launcher: Launcher, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for program in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        if program.name != "tmux" and not (tools / program.name).is_symlink():
            (tools / program.name).symlink_to(program)
    run = launcher.run(UP, "up", PATH=f"{launcher.python.parent}:{tools}")
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert "tmux is missing: install it" in run.stderr


@needs_tmux
def test_packages_that_the_server_lacks_are_reported(launcher: Launcher) -> None:
    bare = launcher.python.parent / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without any package
    bare.chmod(0o755)
    error = launcher.error_of_up(PYTHON=str(bare))
    assert "lacks torch, transformers, faiss, " in error and "local_dense_retriever/.venv" in error


@needs_tmux
@pytest.mark.parametrize("name", ["INDEX_PATH", "CORPUS_PATH"])
def test_a_missing_corpus_or_index_is_reported(launcher: Launcher, name: str) -> None:
    assert "there is no file /no/such file: download or build them" in launcher.error_of_up(**{name: "/no/such file"})


@needs_tmux
def test_mistakes_of_the_training_are_found_before_a_retriever_loads(launcher: Launcher) -> None:
    assert "set SLIME_DIR" in launcher.error_of_up(SLIME_DIR="/nowhere")
    (launcher.python.parent / "ray").unlink()
    assert "no command 'ray'" in launcher.error_of_up()
    assert launcher.calls("retriever") == []


@needs_tmux
def test_a_dry_run_prints_every_command_and_starts_nothing(launcher: Launcher) -> None:
    run = launcher.run(UP, "--dry-run", TOKEN_TRACKING_MODE="router_radix", RETRIEVER_GPUS="6,7")
    assert f"PORT={launcher.retriever_port}" in run.stdout and "CUDA_VISIBLE_DEVICES=6,7" in run.stdout
    assert "-m token_router" in run.stdout and "ray job submit" in run.stdout
    assert '"SEARCH_BACKEND": "local"' in run.stdout
    assert not launcher.session_exists() and not launcher.logs.exists()


@needs_tmux
def test_check_reports_mistakes_and_starts_nothing(launcher: Launcher) -> None:
    assert "--check" in launcher.run(UP, "--help").stdout
    assert launcher.run(UP, "--check").returncode == 0
    wrong = launcher.run(UP, "--check", TOKEN_TRACKING_MODE="router_handler")
    assert wrong.returncode == 1 and "NOT compatible" in wrong.stderr
    assert launcher.run(UP, "--dry-run", SEARCH_BACKEND="bing").returncode == 1
    assert not launcher.session_exists() and launcher.calls("retriever") == []


@needs_tmux
def test_an_unknown_word_is_refused_and_nothing_runs(launcher: Launcher) -> None:
    assert "unknown word 'start'" in launcher.run(UP, "start").stderr
    assert launcher.run(UP, "status").returncode == 1
    assert launcher.run(UP, "down").returncode == 0
    assert "nothing runs" in launcher.run(UP, "attach").stderr
    assert "no logs" in launcher.run(UP, "logs").stderr


# --- up ---


@needs_tmux
@slow
def test_up_starts_retriever_and_training_and_down_stops_both(launcher: Launcher) -> None:
    run = launcher.run_up("up", "--", "--lr", "5e-7", RETRIEVER_LOADS="2", RETRIEVER_ARGS="--faiss_gpu --topk 4")
    assert launcher.windows() == ["0 retriever", "1 training"]
    assert "loading the index of the test" in run.stderr  # progress
    [retriever], [train] = launcher.calls("retriever"), launcher.calls("train")
    flags = flags_of(retriever["argv"])
    assert flags["--port"] == str(launcher.retriever_port) and flags["--host"] == "127.0.0.1"
    assert "--faiss_gpu" in flags and flags["--topk"] == "4"
    assert retriever["environment"]["CUDA_VISIBLE_DEVICES"] == ""  # the GPUs are the training's
    assert "CUDA_VISIBLE_DEVICES" not in train["environment"]
    assert train["environment"]["SEARCH_BACKEND"] == "local"
    assert flags_of(train["argv"])["--lr"] == "5e-7"
    assert "loading the index of the test" in launcher.log("retrieval_server")
    eventually(lambda: "step 1 of the training" in launcher.log("training"))

    status = launcher.run(UP, "status")
    assert status.returncode == 0
    assert "window 1: training" in status.stdout and f":{launcher.retriever_port}: ready" in status.stdout
    assert "step 1 of the training" in launcher.run(UP, "logs").stdout
    began = time.monotonic()
    assert launcher.run(UP, "down").returncode == 0
    assert time.monotonic() - began < 60  # the grace period is 90 s
    assert launcher.processes() == [] and not launcher.session_exists()
    assert launcher.run(UP, "status").returncode == 1


@needs_tmux
@slow
def test_a_semicolon_at_the_end_of_an_argument_is_no_command_of_tmux(launcher: Launcher) -> None:
    launcher.tmux("new-session", "-d", "-s", "mine")
    launcher.run_up("up", "--", "--rollout-stop", "a;", ";", r"b\;", "kill-session", "-t", "mine")
    arguments = launcher.calls("train")[0]["argv"]
    assert arguments[arguments.index("--rollout-stop") :] == [
        "--rollout-stop",
        "a;",
        ";",
        r"b\;",
        "kill-session",
        "-t",
        "mine",
    ]
    assert "mine" in launcher.tmux("list-sessions")


@needs_tmux
@slow
def test_a_second_up_starts_nothing(launcher: Launcher) -> None:
    launcher.run_up()
    assert "already running" in launcher.run(UP).stderr
    assert len(launcher.calls("retriever")) == len(launcher.calls("train")) == 1


@needs_tmux
@slow
def test_the_environment_reaches_both_windows_of_a_tmux_that_runs_already(launcher: Launcher) -> None:
    launcher.tmux("new-session", "-d", "-s", "mine")
    launcher.tmux("set-option", "-g", "base-index", "1")
    odd = 'two\nlines, "quotes" and a $name'
    launcher.run_up("up", ODD=odd, GOOGLE_API_KEY="s3cret")
    for kind in ("retriever", "train"):
        [call] = launcher.calls(kind)
        assert (call["environment"]["ODD"], call["environment"]["GOOGLE_API_KEY"]) == (odd, "s3cret")
    assert launcher.windows() == ["0 retriever", "1 training"]
    assert not any("s3cret" in line for line in launcher.processes())
    assert [path.name for path in launcher.temporary.iterdir()] == ["ray"]  # and no file with keys
    launcher.run(UP, "down")
    assert "mine" in launcher.tmux("list-sessions")


@needs_tmux
@slow
def test_the_retrievers_own_environment_is_used_if_there_is_one(launcher: Launcher) -> None:
    own = launcher.path / "local_dense_retriever/.venv/bin/python"
    own.parent.mkdir(parents=True)
    own.write_text(f'#!/bin/sh\nOWN=yes exec {sys.executable} "$@"\n')
    own.chmod(0o755)
    launcher.run_up()
    assert launcher.calls("retriever")[0]["environment"]["OWN"] == "yes"


@needs_tmux
@slow
def test_a_retriever_that_does_not_load_in_time_is_stopped(launcher: Launcher) -> None:
    error = launcher.error_of_up(RETRIEVER_LOADS="60", START_TIMEOUT_S="1")
    assert "not ready after 1 s" in error and "START_TIMEOUT_S" in error
    assert error.rstrip().endswith("stopping what was started") and "loading the index of the test" in error


@needs_tmux
@slow
def test_a_retriever_that_exits_while_loading_is_reported_with_its_log(launcher: Launcher) -> None:
    error = launcher.error_of_up(RETRIEVER_LOADS="1.5", RETRIEVER_BREAKS="CUDA out of memory")
    assert "ended before it was ready" in error and "CUDA out of memory" in error
    assert launcher.calls("train") == []


@needs_tmux
@slow
def test_a_preflight_that_finds_mistakes_ends_it(launcher: Launcher) -> None:
    run = launcher.run(UP, "up", PREFLIGHT="1", HF_CHECKPOINT="/no such model")
    assert run.returncode == 1 and "PREFLIGHT=0" in run.stderr
    assert "there is no folder /no such model" in run.stdout
    assert f"127.0.0.1:{launcher.retriever_port}: 20 passages".replace("127.0.0.1", "localhost") in run.stdout
    assert launcher.processes() == [] and launcher.calls("train") == []


@needs_tmux
@slow
@pytest.mark.model
def test_the_real_retriever_and_the_real_token_router_are_started_and_stopped(launcher: Launcher) -> None:
    folder = launcher.path / "local_dense_retriever"
    shutil.copy(ROOT / "local_dense_retriever" / "retrieval_server.py", folder)
    corpus, index, model = folder / "toy_corpus.jsonl", launcher.path / "toy.index", minilm_folder()
    build = ["--corpus_path", str(corpus), "--index_path", str(index)]
    assert build_index.main([*build, "--retriever_name", "minilm", "--retriever_model", model]) == 0
    tokenizer = launcher.path / "the model"
    TOKENIZER.save_pretrained(tokenizer)
    launcher.run_up(
        "up",
        timeout=180,
        CORPUS_PATH=str(corpus),
        INDEX_PATH=str(index),
        RETRIEVER_NAME="minilm",
        RETRIEVER_MODEL=model,
        TOKEN_TRACKING_MODE="router_radix",
        HF_CHECKPOINT=str(tokenizer),
    )
    assert launcher.windows() == ["0 retriever", "1 training", "2 token-router"]
    assert "20 passages" in launcher.log("retrieval_server")
    assert f":{launcher.router_port}" in launcher.log("token_router")
    flags = flags_of(launcher.calls("train")[0]["argv"])
    assert (flags["--sglang-router-ip"], flags["--sglang-router-port"]) == ("127.0.0.1", str(launcher.router_port))
    for port in (launcher.retriever_port, launcher.router_port):
        assert answers(port)
    assert launcher.run(UP, "down", timeout=120).returncode == 0
    assert launcher.processes() == []
    for kind in ("retrieval_server", "token_router"):
        assert "stopped" in launcher.log(kind).splitlines()[-2]  # in an orderly way


@needs_tmux
@slow
def test_a_token_router_that_does_not_start_ends_the_rest(launcher: Launcher) -> None:
    error = launcher.error_of_up(TOKEN_TRACKING_MODE="router_radix", HF_CHECKPOINT="/no such model")
    assert "token router" in error and "there is no folder /no such model" in error
    assert launcher.calls("train") == []


@needs_tmux
@slow
def test_a_token_routers_port_that_is_taken_is_an_error(launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", launcher.router_port)):
        error = launcher.error_of_up(TOKEN_TRACKING_MODE="router_radix")
        assert f"port {launcher.router_port} is taken by process {os.getpid()} (" in error


# --- servers of others ---


@needs_tmux
@slow
def test_a_retriever_of_ours_on_the_port_is_used_and_left_running(launcher: Launcher) -> None:
    with retriever_at(launcher, launcher.retriever_port, RETRIEVER_LOADS="2"):
        launcher.run_up()
        assert launcher.windows() == ["1 training"]
        assert launcher.calls("retriever") == []
        launcher.run(UP, "down")


@needs_tmux
def test_anything_else_on_the_port_is_an_error_that_names_the_process(launcher: Launcher) -> None:
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(launcher.retriever_port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as other:
        try:
            eventually(lambda: answers(launcher.retriever_port))
            error = launcher.error_of_up()
            assert f"port {launcher.retriever_port} is taken by process {other.pid} (" in error
            assert "http.server" in error and "give RETRIEVAL_SERVER_URL another port" in error
            assert other.poll() is None
        finally:
            other.kill()


@needs_tmux
@slow
def test_a_port_that_answers_nothing_is_an_error_too(launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", launcher.retriever_port)):
        assert f"is taken by process {os.getpid()} (" in launcher.error_of_up()


@needs_tmux
@slow
def test_a_remote_retriever_is_waited_for_and_none_is_started(launcher: Launcher) -> None:
    url = f"http://0.0.0.0:{launcher.other_port}"  # no loopback address, though it leads here
    with retriever_at(launcher, launcher.other_port, "0.0.0.0", RETRIEVER_LOADS="2"):
        run = launcher.run_up("up", RETRIEVAL_SERVER_URL=url)
        assert "starting no retriever" in run.stderr and "loading the index" in run.stderr
        assert launcher.calls("retriever") == [] and launcher.windows() == ["1 training"]
        assert launcher.calls("train")[0]["environment"]["RETRIEVAL_SERVER_URL"] == url
        launcher.run(UP, "down")


@needs_tmux
@slow
def test_of_several_retrievers_none_is_started(launcher: Launcher) -> None:
    urls = f"http://localhost:{launcher.retriever_port}, http://127.0.0.1:{launcher.other_port}"
    assert "not listening" in launcher.error_of_up(RETRIEVAL_SERVER_URL=urls, START_TIMEOUT_S="1")
    with retriever_at(launcher, launcher.retriever_port), retriever_at(launcher, launcher.other_port):
        launcher.run_up("up", RETRIEVAL_SERVER_URL=urls)
        assert launcher.calls("retriever") == []
        launcher.run(UP, "down")


@needs_tmux
@slow
def test_web_search_needs_no_retriever(launcher: Launcher) -> None:
    launcher.run_up("up", SEARCH_BACKEND="google", GOOGLE_API_KEY="s3cret")
    assert launcher.calls("retriever") == [] and launcher.windows() == ["1 training"]


@needs_tmux
def test_a_session_of_that_name_that_is_not_ours_is_left_alone(launcher: Launcher) -> None:
    launcher.tmux("new-session", "-d", "-s", SESSION)
    for word in ("up", "down", "attach", "status"):
        run = launcher.run(UP, word)
        assert run.returncode == 1 and "not ours" in run.stderr
    assert launcher.session_exists() and launcher.calls("retriever") == launcher.calls("train") == []


# --- the end ---


@needs_tmux
@slow
def test_a_crash_of_the_retriever_stops_the_training(launcher: Launcher) -> None:
    launcher.run_up()
    os.kill(launcher.calls("retriever")[0]["pid"], signal.SIGKILL)
    launcher.assert_all_has_ended()
    assert "retriever ended at" in launcher.log("retrieval_server")
    assert "exit status 137" in launcher.log("retrieval_server")
    assert "training ended at" in launcher.log("training")


@needs_tmux
@slow
@pytest.mark.parametrize("status", ["0", "3"])
def test_the_end_of_the_training_stops_the_retriever(launcher: Launcher, status: str) -> None:
    launcher.run_up("up", TRAIN=status)
    launcher.assert_all_has_ended()
    expected = "exit status 0" if status == "0" else "exit status 1"
    assert expected in launcher.log("training").splitlines()[-1]
    assert expected in launcher.run(UP, "status").stdout


@needs_tmux
@slow
@pytest.mark.parametrize("window", ["retriever", "training"])
def test_a_window_that_is_closed_stops_the_other(launcher: Launcher, window: str) -> None:
    launcher.run_up()
    launcher.tmux("kill-window", "-t", f"={SESSION}:{window}")
    launcher.assert_all_has_ended()


@needs_tmux
@slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_before_training_begins_stops_what_was_started(launcher: Launcher, how: signal.Signals) -> None:
    with launcher.start(UP, "up", RETRIEVER_LOADS="60") as process:
        eventually(lambda: "waiting for the retriever" in launcher.output and launcher.calls("retriever"))
        if how == signal.SIGINT:
            interrupt(process)
        else:
            process.send_signal(how)
        assert process.wait(timeout=30) == 128 + how
    assert launcher.processes() == [] and not launcher.session_exists()


# --- terminals ---


@contextlib.contextmanager
def in_terminal(launcher: Launcher, *command: str) -> Iterator[int]:
    """The process id of a command that has a terminal; what it writes is thrown away."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(launcher.path.parent)
        os.execve(command[0], list(command), launcher.environment)
    reader = subprocess.Popen(["cat"], stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield pid
    finally:
        os.close(terminal)
        reader.kill()
        reader.wait()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def clients(launcher: Launcher) -> list[str]:
    return launcher.tmux("list-clients", "-F", "#{session_name}:#{window_name}").splitlines()


@needs_tmux
@slow
def test_with_a_terminal_it_attaches_and_detaching_keeps_everything_running(launcher: Launcher) -> None:
    with in_terminal(launcher, str(launcher.path / UP)) as pid:
        eventually(lambda: clients(launcher) == [f"{SESSION}:training"])
        eventually(lambda: launcher.calls("train"))
        launcher.tmux("detach-client", "-s", f"={SESSION}")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    time.sleep(1)
    assert launcher.windows() == ["0 retriever", "1 training"]
    with urllib.request.urlopen(f"http://127.0.0.1:{launcher.retriever_port}/ready", timeout=5) as answer:
        assert answer.status == 200


@needs_tmux
@slow
def test_inside_tmux_it_switches_to_the_session(launcher: Launcher) -> None:
    launcher.tmux("new-session", "-d", "-s", "mine", "-x", "100", "-y", "30")
    for name, value in launcher.environment.items():
        launcher.tmux("set-environment", "-g", name, value)
    with in_terminal(launcher, shutil.which("tmux") or "", "attach", "-t", "mine"):
        eventually(lambda: clients(launcher))
        launcher.tmux("new-window", "-t", "=mine:", str(launcher.path / UP).replace(" ", "\\ "))
        eventually(lambda: clients(launcher) == [f"{SESSION}:training"])
    launcher.run(UP, "down")
    assert "mine" in launcher.tmux("list-sessions")
