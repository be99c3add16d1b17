"""launch/contain.py: nothing that a command has started outlives it, and nothing else is touched."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launch_helpers import ROOT, eventually

CONTAIN = [sys.executable, str(ROOT / "launch" / "contain.py")]
# Two daemons as daemons are made, in sessions of their own and their parents gone; the second does not hear SIGTERM.
DAEMONS = """
setsid --fork bash -c 'echo $$ >> {0}; exec sleep 600'
setsid --fork bash -c 'trap "" TERM; echo $$ >> {0}; sleep 600; sleep 600'
"""


def pids(path: Path, count: int) -> list[int]:
    eventually(lambda: path.exists() and len(path.read_text().split()) == count)
    return [int(pid) for pid in path.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_the_exit_status_is_the_commands() -> None:
    assert subprocess.run([*CONTAIN, "sh", "-c", "exit 7"], check=False).returncode == 7
    assert subprocess.run([*CONTAIN, "sh", "-c", "kill -KILL $$"], check=False).returncode == 137


@pytest.mark.parametrize("options", [[], ["--grace", "5"]], ids=["plain", "with an option"])
def test_two_dashes_after_the_command_belong_to_it(options: list[str]) -> None:
    run = subprocess.run([*CONTAIN, *options, "echo", "--", "-x"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "-- -x\n")


def test_a_missing_command_is_an_error() -> None:
    run = subprocess.run([*CONTAIN, "--grace", "5"], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "there is no command to run" in run.stderr


def test_a_command_that_is_not_there_is_reported() -> None:
    run = subprocess.run([*CONTAIN, "/no/such"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (127, "error: cannot run /no/such: No such file or directory\n")


@pytest.mark.slow
def test_daemons_end_with_the_command(tmp_path: Path) -> None:
    script = DAEMONS.format(tmp_path / "pids") + f"until [ $(wc -l < {tmp_path / 'pids'}) = 2 ]; do sleep 0.1; done"
    assert subprocess.run([*CONTAIN, "bash", "-c", script], check=False).returncode == 0
    assert not any(is_running(pid) for pid in pids(tmp_path / "pids", 2))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_command_first_and_then_its_daemons(tmp_path: Path, how: signal.Signals) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    script = DAEMONS.format(tmp_path / "pids") + "trap 'echo orderly; exit 0' TERM; sleep 600 & wait"
    with subprocess.Popen([*CONTAIN, "bash", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        started = pids(tmp_path / "pids", 2)
        process.send_signal(how)
        assert process.communicate(timeout=30)[0] == "orderly\n"
    assert process.returncode == 128 + how
    assert not any(is_running(pid) for pid in started)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_command_that_does_not_hear_is_killed_after_the_grace_period() -> None:
    command = [*CONTAIN, "--grace", "0.5", "bash", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=20) == 143


def test_output_goes_to_the_log_and_to_us(tmp_path: Path) -> None:
    log = tmp_path / "the log"
    command = [*CONTAIN, "--name", "it", "--log", str(log), "sh", "-c", "echo one; echo two >&2; exit 3"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 3
    assert log.read_text() == run.stdout
    *lines, last = run.stdout.splitlines()
    assert sorted(lines) == ["one", "two"]
    assert last.startswith("== it ended at ") and last.endswith(": exit status 3 ==")


def test_a_log_on_a_full_disk_costs_only_the_log() -> None:
    script = "for i in $(seq 2000); do echo a line of some length to fill the pipe, number $i; done; exit 3"
    command = [*CONTAIN, "--name", "it", "--log", "/dev/full", "sh", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 3 and run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0] == "== /dev/full cannot be written: No space left on device; output is lost =="
    assert len(lines) == 2002 and "exit status 3" in lines[-1]


def test_the_command_gets_sigterm_when_we_are_killed(tmp_path: Path) -> None:
    script = f"trap 'echo orderly > {tmp_path}/end; exit 0' TERM; echo $$; sleep 600 & wait"
    with subprocess.Popen([*CONTAIN, "bash", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        process.kill()
        eventually(lambda: not is_running(command))
    assert (tmp_path / "end").read_text() == "orderly\n"


def test_the_environment_of_a_file_is_all_that_the_command_sees(tmp_path: Path) -> None:
    path = tmp_path / "environment"
    path.write_bytes(b"A=one\ntwo=\0PATH=" + os.environ["PATH"].encode() + b"\0")
    run = subprocess.run([*CONTAIN, "--environment", str(path), "env", "-0"], capture_output=True, check=True)
    assert dict(entry.split(b"=", 1) for entry in run.stdout.split(b"\0") if entry)[b"A"] == b"one\ntwo="
    assert b"HOME=" not in run.stdout
    assert not path.exists()
