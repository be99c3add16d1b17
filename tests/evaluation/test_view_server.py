"""`search-r1 view --serve`: which runs it finds, what it reads while they are written, and whom it answers."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from evaluation_helpers import Geographer, fresh_state, save_tokenizer, serving, write_data  # noqa: F401
from viewer_helpers import byte_tokenizer, sample, search, write_jsonl

from evaluation import run as evaluation_run
from evaluation import view
from evaluation.fork_engine import ForkEngine
from evaluation.live_run import LiveRun
from evaluation.run_list import Run, find_runs
from evaluation.view_server import TOKEN_HEADER, Browser

pytestmark = pytest.mark.model  # importing transformers takes seconds

TOKENIZER = byte_tokenizer()
ROOT = Path(view.__file__).parent.parent
PARTS = [
    ("turn", "<search>capital of Kenya</search>"),
    ("observation", "<information>Nairobi</information>"),
    ("turn", "<answer>Nairobi</answer>"),
]
KENYA = sample(TOKENIZER, PARTS, searches=[search()], id="held-1", phase="before")


def make_runs(root: Path) -> Path:
    """A demo run, an evaluation inside it, one beside it, and slime's dumps; and folders that are no runs."""
    demo = root / "demo-1"
    for folder in (demo / "evaluation-after", root / "eval", root / "dumps", root / "empty", root / ".hidden"):
        folder.mkdir(parents=True)
    for folder in (demo, demo / "evaluation-after", root / "eval", root / ".hidden"):
        write_jsonl(folder / "trajectories.jsonl", [KENYA])
    summary = {"model": "SmolLM2", "stopped": "running", "before": {"exact_match": 0.4531}, "after": None}
    (demo / "summary.json").write_text(json.dumps(summary))
    torch.save({"rollout": [1]}, demo / "resume.pt")
    TOKENIZER.save_pretrained(demo / "tokenizer")
    settings = {"model": str(demo / "tokenizer"), "config": {"max_turns": 2}}
    for folder in (root / "eval", demo / "evaluation-after"):
        (folder / "settings.json").write_text(json.dumps(settings))
    (root / "eval" / "results.json").write_text(json.dumps({"results": {"all": {"em": {"mean": 0.7109}}}}))
    for step in (2, 10):
        torch.save({"rollout_id": step, "samples": [KENYA | {"index": step}]}, root / "dumps" / f"rollout_{step}.pt")
    return root


def read_all(run: LiveRun) -> dict[str, Any]:
    """The index of a run, read to its end."""
    while (index := json.loads(zlib.decompress(run.index(0, 0, 0, budget_s=9.0))))["more"]:
        pass
    return index


def asked(
    root: Path, question: Callable[[TestClient], Awaitable[None]], engine: ForkEngine | None = None, **options: Any
) -> None:
    """Asks a server in this process."""

    async def scenario() -> None:
        browser = Browser(root, lambda folder: TOKENIZER, engine=engine, **options)
        server = TestServer(browser.app(None), host="127.0.0.1")
        async with TestClient(server) as client:
            await question(client)

    asyncio.run(scenario())


# ---- which runs there are --------------------------------------------------------------------------------------------


def test_runs_of_the_demo_of_evaluations_and_of_slimes_dumps_are_found_with_what_they_say(tmp_path):
    runs = {name: run.facts() for name, run in find_runs(make_runs(tmp_path)).items()}
    assert {name: (run["kind"], run["model"], run["state"], run["figures"]) for name, run in runs.items()} == {
        "demo-1": ("demo", "SmolLM2", "running", "0.453"),
        "demo-1/evaluation-after": ("evaluation", "tokenizer", "unfinished", ""),
        "eval": ("evaluation", "tokenizer", "finished", "0.711"),
        "dumps": ("debug dumps", "", "", ""),
    }
    assert [file.name for file in find_runs(tmp_path)["dumps"].files()] == ["rollout_2.pt", "rollout_10.pt"]


def test_the_folder_of_one_run_is_a_list_of_one(tmp_path):
    assert list(find_runs(make_runs(tmp_path) / "eval")) == ["eval"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"results": [], "model": null}', '{"results": {"all": {}}}', "\x00"]
)
def test_a_damaged_summary_hides_no_run(tmp_path, content):
    make_runs(tmp_path)
    for name in ("demo-1/summary.json", "eval/results.json", "eval/settings.json", "demo-1/settings.yaml"):
        (tmp_path / name).write_text(content)
    for run in find_runs(tmp_path).values():
        assert run.facts()["kind"] and isinstance(run.settings(), dict)


def test_the_settings_of_a_run_are_those_of_its_rollouts(tmp_path):
    make_runs(tmp_path)
    (tmp_path / "demo-1" / "settings.yaml").write_text("max_turns: 5\n")
    runs = find_runs(tmp_path)
    assert runs["demo-1"].settings() == {"max_turns": 5} and runs["eval"].settings() == {"max_turns": 2}


# ---- a run that is written -------------------------------------------------------------------------------------------


def test_new_lines_appear_and_an_incomplete_one_is_not_an_error(tmp_path):
    file = write_jsonl(tmp_path / "trajectories.jsonl", [KENYA])
    run = LiveRun(Run("run", tmp_path), TOKENIZER)
    assert len(read_all(run)["rows"]) == 1
    line = json.dumps(KENYA | {"id": "held-2"}).encode()
    with file.open("ab") as lines:
        for piece, rows in ((line[:50], 1), (line[50:], 2), (b"\n", 2), (b"\n\n" + line + b"\n", 3)):
            lines.write(piece)
            lines.flush()
            index = read_all(run)
            assert len(index["rows"]) == rows and not index["error"]
    assert [row["id"] for row in index["rows"]] == ["held-1", "held-2", "held-2"]
    assert [run.fields(1, row)["id"] for row in range(3)] == ["held-1", "held-2", "held-2"]


def test_a_page_gets_only_what_it_lacks(tmp_path):
    samples = [KENYA, sample(TOKENIZER, [("turn", "XYZ")])]
    write_jsonl(tmp_path / "trajectories.jsonl", samples)
    run = LiveRun(Run("run", tmp_path), TOKENIZER)
    whole = read_all(run)
    tokens = len(whole["tokens"])
    rest = json.loads(zlib.decompress(run.index(1, 1, tokens - 2, budget_s=1.0)))
    assert rest["rows"] == whole["rows"][1:] and len(rest["tokens"]) == 2 and rest["begin"] == 1
    assert len(json.loads(zlib.decompress(run.index(7, 1, tokens, budget_s=1.0)))["rows"]) == 2


@pytest.mark.parametrize("how", ["shorter", "other", "replaced", "gone"])
def test_a_file_that_was_written_again_is_read_again(tmp_path, how):
    file = write_jsonl(tmp_path / "trajectories.jsonl", [KENYA, KENYA])
    run = LiveRun(Run("run", tmp_path), TOKENIZER)
    before = read_all(run)
    if how == "shorter":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "other":
        write_jsonl(file, [KENYA | {"id": "new-1"}, KENYA | {"metadata": None}, KENYA])
    elif how == "replaced":
        write_jsonl(tmp_path / "other", [KENYA, KENYA]).replace(file)
    else:
        file.unlink()
    after = read_all(run)
    assert after["generation"] == before["generation"] + 1
    assert len(after["rows"]) == {"shorter": 1, "other": 3, "replaced": 2, "gone": 0}[how]
    with pytest.raises(LookupError):
        run.chunk(before["generation"], 0)


def test_a_line_that_is_not_a_sample_is_reported_and_earlier_rows_stay(tmp_path):
    file = write_jsonl(tmp_path / "trajectories.jsonl", [KENYA])
    with file.open("a") as lines:
        lines.write("nonsense\n")
    run = LiveRun(Run("run", tmp_path), TOKENIZER)
    for _ in range(2):
        index = read_all(run)
        assert len(index["rows"]) == 1 and index["error"] == f"{file}, line 2 is not JSON."


def test_chunks_are_the_same_however_the_file_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.page_data.CHUNK_IDS", 2 * len(KENYA["tokens"]))
    file = write_jsonl(tmp_path / "trajectories.jsonl", [])
    run = LiveRun(Run("run", tmp_path), TOKENIZER)
    for number in range(5):
        with file.open("a") as lines:
            lines.write(json.dumps(KENYA | {"index": number}) + "\n")
        starts = read_all(run)["starts"]
    assert starts == [0, 2, 4]
    sizes = [len(json.loads(zlib.decompress(run.chunk(1, number)))) for number in range(3)]
    assert sizes == [2, 2, 1]
    for number in (-1, 3):
        with pytest.raises(LookupError):
            run.chunk(1, number)


def test_dumps_are_read_in_the_order_of_their_numbers_and_new_ones_are_added(tmp_path):
    root = make_runs(tmp_path)
    run = LiveRun(find_runs(root)["dumps"], TOKENIZER)
    assert [row["index"] for row in read_all(run)["rows"]] == [2, 10]
    torch.save({"rollout_id": 11, "samples": [KENYA | {"index": 11}] * 2}, root / "dumps" / "rollout_11.pt")
    whole = (root / "dumps" / "rollout_11.pt").read_bytes()
    (root / "dumps" / "rollout_12.pt").write_bytes(whole[: len(whole) // 2])  # is being written
    index = read_all(run)
    assert [row["index"] for row in index["rows"]] == [2, 10, 11, 11] and not index["error"]
    assert index["rows"][-1]["file"] == "dumps/rollout_11" and run.fields(1, 3)["index"] == 11


def test_many_threads_read_a_growing_run_without_losing_or_doubling_a_row(tmp_path):
    file = write_jsonl(tmp_path / "trajectories.jsonl", [])
    run = LiveRun(Run("run", tmp_path), TOKENIZER)
    threads = [
        threading.Thread(target=lambda: [run.index(1, 0, 0, budget_s=0.001) for _ in range(30)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    with file.open("a") as lines:
        for number in range(40):
            lines.write(json.dumps(KENYA | {"index": number}) + "\n")
            lines.flush()
    for thread in threads:
        thread.join()
    assert [row["index"] for row in read_all(run)["rows"]] == list(range(40))


# ---- whom it answers -------------------------------------------------------------------------------------------------


def test_rows_and_records_come_over_http_and_every_answer_has_the_policy(tmp_path):
    async def question(client: TestClient) -> None:
        page = await client.get("/")
        text = await page.text()
        assert "{{" not in text.replace("${{", "") and "<script>" in text
        runs = await (await client.get("/api/runs")).json()
        assert [run["name"] for run in runs["runs"]].count("demo-1") == 1 and not runs["fork"]["ready"]
        index = await (await client.get("/api/index", params={"run": "demo-1"})).json()
        assert index["rows"][0]["id"] == "held-1" and index["model"] == "SmolLM2"
        chunk = await (await client.get("/api/chunk", params={"run": "demo-1", "generation": 1})).json()
        assert chunk[0]["ids"] == KENYA["tokens"]
        for path in ("/", "/api/runs", "/nothing", "/api/index?run=nothing"):
            policy = (await client.get(path)).headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy

    asked(make_runs(tmp_path), question)


@pytest.mark.parametrize(
    "path",
    [
        "/api/index?run=../secret",
        "/api/index?run=%2e%2e%2fsecret",
        "/api/index?run=/etc",
        "/api/index?run=demo-1/../../secret",
        "/api/index?run=.hidden",
        "/api/index?run=",
        "/../secret/trajectories.jsonl",
        "/%2e%2e/secret/trajectories.jsonl",
        "/demo-1/summary.json",
        "/api/chunk?run=../secret&generation=1&number=0",
    ],
)
def test_nothing_outside_the_folder_is_reached(tmp_path, path):
    (tmp_path / "secret").mkdir()
    write_jsonl(tmp_path / "secret" / "trajectories.jsonl", [KENYA | {"id": "secret"}])
    (tmp_path / "runs").mkdir()

    async def question(client: TestClient) -> None:
        response = await client.get(path)
        assert response.status == 404 and "held" not in await response.text()

    asked(make_runs(tmp_path / "runs"), question)


def test_requests_that_make_no_sense_are_answered_in_a_sentence(tmp_path):
    async def question(client: TestClient) -> None:
        for path, status in (
            ("/api/index?run=demo-1&rows=x", 400),
            ("/api/chunk?run=demo-1&generation=1&number=7", 410),
            ("/api/chunk?run=demo-1&generation=9&number=0", 410),
            ("/api/index?run=dumps", 422),
        ):
            response = await client.get(path)
            assert response.status == status and len(await response.text()) < 200, path
        assert "--tokenizer" in await (await client.get("/api/index?run=dumps")).text()
        assert (await client.post("/api/index")).status == 405

    asked(make_runs(tmp_path), question)


FORK = {"run": "eval", "generation": 1, "row": 0, "turn": 1, "searches": [{"query": "x", "passages": [["A", "B"]]}]}


def test_only_the_viewers_own_page_can_fork(tmp_path):
    async def question(client: TestClient) -> None:
        token = (await (await client.get("/api/runs")).json())["fork"]["token"]
        for headers, status in (
            ({}, 403),
            ({TOKEN_HEADER: "guess"}, 403),
            ({TOKEN_HEADER: "\xe9"}, 403),
            ({TOKEN_HEADER: token, "Origin": "https://evil.example"}, 403),
            ({TOKEN_HEADER: token, "Origin": "null"}, 403),
            ({TOKEN_HEADER: token}, 409),  # there is no engine
        ):
            response = await client.post("/api/fork", json=FORK, headers=headers)
            assert response.status == status, headers
        assert "--engine URL" in await response.text()
        assert (await client.get("/api/runs", headers={"Origin": "https://evil.example"})).status == 403
        assert not (await client.options("/api/fork")).headers.get("Access-Control-Allow-Origin")

    asked(make_runs(tmp_path), question)


def test_dns_rebinding_is_refused(tmp_path):
    async def scenario() -> None:
        browser = Browser(make_runs(tmp_path), lambda folder: TOKENIZER)
        async with TestClient(TestServer(browser.app({"127.0.0.1:8000"}))) as client:
            assert (await client.get("/api/runs", headers={"Host": "evil.example:8000"})).status == 403
            assert (await client.get("/api/runs", headers={"Host": "127.0.0.1:8000"})).status == 200

    asyncio.run(scenario())


def recorded_by_an_evaluation(tmp_path: Path, engine: Any, retriever: Any) -> Path:
    """A run that `search-r1 evaluate` made with these fakes."""
    model = save_tokenizer(tmp_path / "model")
    command = ["--model", model, "--engine", f"http://127.0.0.1:{engine.port}", "--search", f"local:{retriever.url}"]
    command += ["--data", write_data(tmp_path / "data.jsonl"), "--output", tmp_path / "runs" / "eval"]
    assert evaluation_run.main([str(word) for word in command]) == 0
    return tmp_path / "runs"


def test_a_recorded_rollout_is_forked_over_http_with_the_settings_of_its_run(tmp_path, capsys):
    with serving(Geographer()) as (engine, retriever):
        runs = recorded_by_an_evaluation(tmp_path, engine, retriever)
        settings = json.loads((runs / "eval" / "settings.json").read_text())
        settings["config"]["max_obs_tokens"] = 60
        (runs / "eval" / "settings.json").write_text(json.dumps(settings))
        before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
        asked_before = len(engine.requests)
        url = f"http://127.0.0.1:{engine.port}"

        async def question(client: TestClient) -> None:
            token = (await (await client.get("/api/runs")).json())["fork"]["token"]
            index = await (await client.get("/api/index", params={"run": "eval"})).json()
            row = index["rows"][0]

            async def fork(**changes: Any) -> Any:
                return await client.post("/api/fork", json=FORK | changes, headers={TOKEN_HEADER: token})

            found = await (await fork()).json()
            assert found["row"]["question"] == row["question"] and found["row"]["phase"] == "fork at turn 1"
            assert found["record"]["searches"][0]["documents"] == [["A", "B"]]
            sent = engine.requests[asked_before]["input_ids"]
            assert found["record"]["ids"][: len(sent)] == sent
            assert set(map(str, found["record"]["ids"])) == set(found["tokens"])
            long = [{"query": "x", "passages": [["A", "word " * 500]]}]
            found = await (await fork(searches=long)).json()
            observed = next(tokens for kind, tokens in found["record"]["segments"] if kind == "observation")
            assert 40 <= observed <= 60
            for changes, status, message in (
                ({"turn": 2}, 422, "Turn 2 made no search"),
                ({"searches": []}, 422, "Turn 1 made 1 searches; 0 were given"),
                ({"searches": [{"query": "x", "passages": None}]}, 422, "--search local:URL"),
                ({"searches": [{"query": 1, "passages": []}]}, 422, "malformed"),
                ({"searches": "x"}, 422, "malformed"),
                ({"row": 99}, 410, "written again"),
                ({"row": "x"}, 400, "malformed"),
                ({"run": "../eval"}, 404, "no run of this name"),
            ):
                response = await fork(**changes)
                assert response.status == status and message in await response.text(), changes

        from transformers import AutoTokenizer

        browser_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")

        async def scenario() -> None:
            browser = Browser(runs, lambda folder: browser_tokenizer, engine=ForkEngine(url, None, 0.0, 512))
            async with TestClient(TestServer(browser.app(None))) as client:
                await question(client)

        asyncio.run(scenario())
        assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_serves_on_loopback_until_ctrl_c(tmp_path):
    make_runs(tmp_path)
    command = [sys.executable, "-m", "evaluation.view", "--serve", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            url = re.match(r"http://127\.0\.0\.1:\d+/", line)
            assert url, line + process.stderr.read() if process.poll() is not None else line
            with urllib.request.urlopen(f"{url[0]}api/runs", timeout=20) as answer:
                assert len(json.load(answer)["runs"]) == 4
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            assert process.returncode == 0 and err.strip() == "stopped"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serve", "nothing"], "--serve takes one folder of runs"),
        (["--serve", ".", "."], "--serve takes one folder of runs"),
        (["--serve", ".", "--engine", "ftp://x"], "is not an address of the form http://HOST:PORT"),
        (["--serve", ".", "--engine", "http://127.0.0.1:1"], "engine"),
        (["--serve", ".", "--engine", "http://127.0.0.1:1", "--search", "bing"], "--search is 'bing'"),
        (["--serve", ".", "--host", "999.1.1.1"], "999.1.1.1"),
    ],
)
def test_arguments_that_cannot_be_used_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert view.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
