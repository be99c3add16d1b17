"""What the tests of this folder share: an engine's process, calls of it, and what its answers must agree with.

Nothing here knows a mode of the plugin: `Recorder` stands before the engine and sees what it sees, whoever sent it.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer

ROOT = Path(__file__).resolve().parents[2]
SGLANG = ROOT / ".venv-sglang"
CONTEXT = 2048  # tokens of one request, prompt and reply together, in both engines
START_LIMIT_S = 300.0  # SGLang needs 40 s on two cores
STOP_LIMIT_S = 30.0
CALL_LIMIT_S = 300.0  # of one call; the longest takes seconds on two idle cores

# The engines compute in bfloat16, the reference in float32. Mean difference of a sampled token's log-probability,
# measured with SmolLM2: see the figures that a run prints at its end.
MEAN_TOLERANCE = 0.05
# Two likeliest tokens nearer than this may change places with the batch or the reused prefix: SGLang rounds logits
# to bfloat16, which is .125 between 16 and 32.
NEAR_TIE = 0.3

SLIME_PARAMS = {  # as slime makes them
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 24,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}
# The model goes on with the pattern, and nothing else is nearly as likely.
PATTERN = "The capital of France is Paris. " * 4 + "The"
GOES_ON = " capital of France is Paris. The capital of France is Paris."


@dataclass(frozen=True)
class EngineUnderTest:
    """A server that speaks SGLang's /generate."""

    name: str  # "demo" or "sglang"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any) -> httpx.Response:
        """One call; `body` is JSON, or bytes that are sent as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return httpx.post(self.url + path, content=content, headers=headers, timeout=CALL_LIMIT_S, trust_env=False)

    def generate(self, params: dict | None = None, **body: Any) -> dict:
        """A reply with log-probabilities; `params` change slime's."""
        sampling = SLIME_PARAMS | (params or {})
        response = self.post("/generate", {"sampling_params": sampling, "return_logprob": True} | body)
        assert response.status_code == 200, response.text
        return response.json()


def log_probs_of(reply: dict) -> list[float]:
    """The log-probabilities of a reply's output_ids."""
    return [triple[0] for triple in reply["meta_info"]["output_token_logprobs"]]


# --- processes ----------------------------------------------------------------------------------------------------


@contextmanager
def demo_engine(model: Path, folder: Path) -> Iterator[EngineUnderTest]:
    """The demo's engine over a model folder; its log goes into `folder`."""
    port = _free_port()
    command = [sys.executable, "-m", "demo.engine_server", "--model", str(model), "--port", str(port)]
    command += ["--max-length", str(CONTEXT), "--slots", "16"]
    with _running("demo", command, {}, port, folder) as engine:
        yield engine


@contextmanager
def sglang_engine(model: Path, folder: Path) -> Iterator[EngineUnderTest]:
    """SGLang on the CPU over a model folder; its log goes into `folder`. Skips the test where it is not installed."""
    if not (SGLANG / ".installed").is_file():
        pytest.skip(f"SGLang is not installed in {SGLANG.name}: `make test-sglang` installs it, or says why it cannot")
    port = _free_port()
    command = [str(SGLANG / "bin" / "python"), "-m", "sglang.launch_server", "--model-path", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--context-length", str(CONTEXT)]
    command += ["--device", "cpu", "--dtype", "bfloat16", "--max-total-tokens", "20000", "--mem-fraction-static", "0.3"]
    command += ["--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none"]
    command += ["--disable-overlap-schedule"]  # it needs a GPU's streams
    # Unless told, SGLang adds 10,000 to its port for another one, which may be more than there are.
    environment = {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_GRPC_PORT": str(_free_port())}
    with _running("sglang", command, environment, port, folder) as engine:
        yield engine


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def _running(
    name: str, command: list[str], environment: dict[str, str], port: int, folder: Path
) -> Iterator[EngineUnderTest]:
    """A server process with its children in a process group of their own, which ends with the block."""
    # One thread: more of them wait for each other in loops, and a machine with other work becomes ten times slower.
    values = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | environment
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT if name == "demo" else folder,
            env=inherited | values,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_health(process, port, log)
        yield EngineUnderTest(name, port)
    finally:
        _stop_group(process)


def _await_health(process: subprocess.Popen, port: int, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    tail = log.read_text(errors="replace")[-3000:]
    status = process.poll()
    state = f"did not start in {START_LIMIT_S:.0f} s" if status is None else f"ended with status {status}"
    pytest.fail(f"The engine {state}. The end of {log}:\n{tail}")


def _stop_group(process: subprocess.Popen) -> None:
    """Ends a process that leads its group, and its children: kindly at first."""
    try:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, kind)
            end = time.monotonic() + STOP_LIMIT_S
            while time.monotonic() < end:
                process.poll()  # so that it does not stay in its group as a zombie
                os.killpg(process.pid, 0)  # raises when nobody is left
                time.sleep(0.1)
    except ProcessLookupError:
        process.wait()
        return
    raise RuntimeError(f"The process group {process.pid} cannot be ended.")


# --- agreement ----------------------------------------------------------------------------------------------------


class Figures:
    """Agreements found in a run, printed at its end."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def agree(self, engine: EngineUnderTest, what: str, found: Sequence[float], expected: Sequence[float]) -> None:
        """Asserts that two lists of log-probabilities agree as well as bfloat16 lets them."""
        assert len(found) == len(expected) > 0
        apart = [abs(one - other) for one, other in zip(found, expected, strict=True)]
        mean = sum(apart) / len(apart)
        self.lines.append(
            f"{engine.name}: {what}: mean |Δ| {mean:.4f}, largest {max(apart):.3f}, of {len(apart)} tokens"
        )
        assert mean < MEAN_TOLERANCE, self.lines[-1]


def assert_same_but_for_ties(model: Any, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> None:
    """Two greedy replies are equal, or part where the model finds two tokens nearly equally likely.

    Behind that place they are replies to different texts.
    """
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *one[:place]]])).logits[0, -1]
            assert abs(float(logits[mine] - logits[theirs])) < NEAR_TIE, f"token {place}: {mine} and {theirs}"
            return
    assert len(one) == len(other)


# --- what an engine sees ------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One /generate as it passed the recorder; `reply` is filled in when it comes."""

    input_ids: list[int]
    body: dict
    status: int = 0
    reply: dict = field(default_factory=dict)

    @property
    def output_ids(self) -> list[int]:
        return self.reply["output_ids"]

    @property
    def finish(self) -> str:
        return self.reply["meta_info"]["finish_reason"]["type"]


class Recorder:
    """Stands in front of an engine, hands everything on, and keeps each call of /generate.

    `async with Recorder(engine) as recorder: recorder.port`
    """

    def __init__(self, engine: EngineUnderTest) -> None:
        self._engine = engine
        self.calls: list[Call] = []
        self.arrived = asyncio.Semaphore(0)  # released by every call

    @property
    def port(self) -> int:
        assert self._server.port is not None
        return self._server.port

    async def __aenter__(self) -> "Recorder":
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
        self._client = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        self._server = TestServer(app)
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()
        await self._client.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        content = await request.read()
        call = None
        if request.path == "/generate":
            body = json.loads(content)
            call = Call(body.get("input_ids"), body)
            self.calls.append(call)
            self.arrived.release()
        url = self._engine.url + request.path_qs
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with self._client.request(request.method, url, data=content, headers=headers) as answer:
            content = await answer.read()
            if call is not None:
                call.status = answer.status
                call.reply = json.loads(content) if answer.status == 200 else {}
            return web.Response(status=answer.status, body=content, content_type=answer.content_type)
