"""Stand-ins for the programs at the launch scripts' edges: Ray, slime's train.py, and a retriever that loads at once.

    python launch_fakes.py ray start --head … | ray job submit … | train … | retriever --port …

Each is a real process. Ray's stand-in runs a job as Ray does: as its own child, with its own environment and that of
the runtime env, and with a daemon beside it. What was called is recorded in $RECORDS, one JSON file a call.
"""

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

DAEMON = [sys.executable, "-c", "import time; time.sleep(600)"]


def record(kind: str, **facts: Any) -> None:
    """Leaves a file that says how this process was called."""
    folder = Path(os.environ["RECORDS"])
    text = json.dumps({"argv": sys.argv[2:], "environment": dict(os.environ), "pid": os.getpid(), **facts})
    partial = folder / f".{uuid.uuid4().hex}"
    partial.write_text(text)
    partial.rename(folder / f"{kind}-{time.time_ns()}.json")


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(port: int, handler: type[Handler], host: str = "127.0.0.1") -> None:
    """Serves until SIGTERM, which ends the process at once."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    http.server.ThreadingHTTPServer((host, port), handler).serve_forever()


# --- Ray ---


def ray(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    command = argv[0] if argv[0] == "start" else f"{argv[0]} {argv[1]}"
    record(f"ray-{command.replace(' ', '-')}")
    if token_exists() and os.environ.get("RAY_AUTH_MODE") != "token":
        print("Ray needs a token", file=sys.stderr)
        return 1
    if command == "start":
        for flag in ("--node-ip-address", "--port", "--num-gpus", "--dashboard-host", "--dashboard-port"):
            parser.add_argument(flag)
        for flag in ("--head", "--block", "--disable-usage-stats"):
            parser.add_argument(flag, action="store_true")
        return ray_start(parser.parse_args(argv[1:]))
    for flag in ("--address", "--submission-id", "--runtime-env-json"):
        parser.add_argument(flag)
    for flag in ("--no-wait", "--follow"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args(argv[2:])
    return ray_job(command, args)


def token_exists() -> bool:
    """Ray 2.60 writes one in any plain ray.init(), and asks for it from then on."""
    return (Path(os.environ["HOME"]) / ".ray" / "auth_token").exists()


def ray_start(args: argparse.Namespace) -> int:
    note = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    note.parent.mkdir(exist_ok=True)
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    note.write_text(f"{(own or [args.node_ip_address])[0]}:{args.port}")  # not 127.0.0.1, as the real one
    if os.environ.get("RAY_FAILS"):
        print("some traceback of Ray", file=sys.stderr)
        return 1
    # A daemon in a session of its own, whose parent ends: process 1 or a subreaper adopts it.
    subprocess.run(["setsid", "--fork", *DAEMON], check=True)
    jobs: dict[str, subprocess.Popen] = {}
    logs: dict[str, Path] = {}

    class Dashboard(Handler):
        def do_GET(self) -> None:
            if self.path == "/api/version" and token_exists():
                return self.answer(401, {"detail": "Unauthorized"})
            if self.path == "/api/version":
                return self.answer(200, {"ray_version": "2.60.0"})
            job = jobs[self.path.strip("/")]
            log = logs[self.path.strip("/")].read_text()
            return self.answer(200, {"status": job.poll(), "log": log})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            log = Path(os.environ["RECORDS"]) / f"{body['id']}.log"
            environment = {**os.environ, **body["env_vars"]}
            with log.open("wb") as output:
                job = subprocess.Popen(body["command"], env=environment, stdout=output, stderr=output)
            jobs[body["id"]], logs[body["id"]] = job, log
            self.answer(200, {})

        def do_DELETE(self) -> None:
            jobs[self.path.strip("/")].terminate()
            jobs[self.path.strip("/")].wait()
            self.answer(200, {})

    serve(int(args.dashboard_port), Dashboard)
    return 0


def ray_job(command: str, args: argparse.Namespace) -> int:
    if command == "job submit":
        if os.environ.get("RAY_AGENT_IS_LATE") and len(list(Path(os.environ["RECORDS"]).glob("ray-job-submit-*"))) < 2:
            print("RuntimeError: status code 500: No available agent to submit job, please try later.", file=sys.stderr)
            return 1
        variables = json.loads(args.runtime_env_json)["env_vars"]
        ask(args.address, "", {"id": args.submission_id, "command": args.rest, "env_vars": variables})
        return 0
    [job] = args.rest
    if command == "job stop":
        ask(args.address, job, method="DELETE")
    elif command == "job logs":
        return show_log(args.address, job)
    else:
        status = ask(args.address, job)["status"]
        words = {None: f"Status for job '{job}': RUNNING", 0: f"Job '{job}' succeeded"}
        stopped = "was stopped" if status is not None and status < 0 else "failed"
        print(words.get(status, f"Job '{job}' {stopped}"))
    return 0


def show_log(address: str, job: str) -> int:
    shown = 0
    while True:
        answer = ask(address, job)
        print(answer["log"][shown:], end="", flush=True)
        shown = len(answer["log"])
        if answer["status"] is not None or os.environ.get("RAY_LOGS_BREAK_OFF"):
            return 0
        time.sleep(0.1)


def ask(address: str, path: str, body: object = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", data, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=10) as answer:
        return json.load(answer)


# --- slime's train.py ---


def train(argv: list[str]) -> int:
    """$TRAIN says what happens: a number is the exit status, anything else trains on until it is stopped."""
    record("train", cwd=os.getcwd())
    print("step 1 of the training", flush=True)
    how = os.environ.get("TRAIN", "0")
    if how.isdecimal():
        return int(how)
    subprocess.Popen(["setsid", *DAEMON])  # as SGLang's engines are
    time.sleep(600)
    return 0


# --- the retriever ---


def retriever(argv: list[str]) -> int:
    """Loads for $RETRIEVER_LOADS seconds; with $RETRIEVER_BREAKS it ends then, with a traceback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--host")
    args, _ = parser.parse_known_args(argv)
    record("retriever")
    began = time.monotonic()
    loads_s = float(os.environ.get("RETRIEVER_LOADS", "0"))
    breaks = os.environ.get("RETRIEVER_BREAKS")

    class Server(Handler):
        def do_GET(self) -> None:
            if time.monotonic() - began < loads_s:
                return self.answer(503, {"loading": "the index of the test, for 1 s"})
            return self.answer(200, {"status": "ready", "rows": 20})

    if breaks:
        threading.Timer(loads_s, lambda: (print(breaks, flush=True), os._exit(1))).start()
    print("loading the index of the test", flush=True)
    serve(args.port, Server, args.host)
    return 0


if __name__ == "__main__":
    sys.exit({"ray": ray, "train": train, "retriever": retriever}[sys.argv[1]](sys.argv[2:]))
