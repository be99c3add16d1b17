"""`search-r1 evaluate` from the command line to its files, between a fake engine and a fake retriever."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from demo_helpers import save_model
from evaluation_helpers import CAPITALS, Geographer, fresh_state, records_of, save_tokenizer, serving, write_data  # noqa: F401
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from preflight_helpers import retriever_server
from retriever_fakes import write_corpus

from evaluation import run
from evaluation.corpus_audit import audit_lines
from local_dense_retriever import audit
from local_dense_retriever.corpus import Corpus

ROOT = Path(__file__).resolve().parents[2]
Evaluate = Callable[..., int]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


def arguments(
    folder: Path,
    model: Path,
    engine: FakeEngine,
    retriever: FakeRetriever | Any,
    *more: object,
    data: Path | None = None,
) -> list[str]:
    places = ["--model", model, "--engine", f"http://127.0.0.1:{engine.port}", "--output", folder / "out"]
    data = data or write_data(folder / "test.jsonl")
    return [str(part) for part in (*places, "--search", f"local:{retriever.url}", "--data", data, *more)]


def test_a_corpus_audit_is_shown_with_the_figures_of_its_sets(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Corpus(write_corpus(tmp_path / "c.jsonl", ["red", "green"]))
    for name in ("nq", "popqa"):
        (tmp_path / f"{name}.jsonl").write_text('{"golden_answers": ["red"]}\n')
    audit.audit(corpus, [tmp_path / "nq.jsonl", tmp_path / "popqa.jsonl"])
    with serving(Geographer()) as (engine, _), retriever_server(tmp_path, ["red", "green"]) as url:
        assert run.main(arguments(tmp_path, tokenizer_folder, engine, SimpleNamespace(url=url))) == 0
    shown = capsys.readouterr().out
    assert "nq: 1 questions; some passage has a gold answer for 1.000" in shown
    assert "popqa" not in shown.replace(str(tmp_path), "")


@pytest.mark.parametrize("search", ["google", "none", "local:http://127.0.0.1:1", "local:nonsense"])
def test_a_search_without_an_audit_shows_nothing(search: str) -> None:
    assert audit_lines(search, {"nq"}) == []


def test_a_run_leaves_trajectories_results_and_a_plot(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "test.jsonl", sources=("nq", "bamboogle"))
    with serving(Geographer(wrong=("Peru",))) as (engine, retriever):
        assert run.main(arguments(tmp_path, tokenizer_folder, engine, retriever, data=data)) == 0
    records = records_of(tmp_path / "out")
    assert len({record["id"] for record in records}) == 8
    for record in records:
        assert {"index", "prompt", "tokens", "response", "loss_mask", "reward", "label"} <= record.keys()
        assert record["status"] == "completed" and record["data_source"] in ("nq", "bamboogle")
        assert len(record["loss_mask"]) == len(record["rollout_log_probs"]) == record["response_length"]
        assert record["metadata"]["search_r1"]["stop_reason"] == "answered"
        # Right: 1. Wrong in a valid format: .2, as in training. The documents name Nairobi only.
        question = record["metadata"]["question"]
        assert record["reward"] == (0.2 if "Peru" in question else 1.0)
        assert record["scores"]["gold_found"] == float("Kenya" in question)
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    for name, count in {"nq": 4, "bamboogle": 4, "average": 8}.items():
        assert results[name]["questions"] == count
        assert results[name]["em"]["mean"] == 0.75 and results[name]["gold_found"]["mean"] == 0.25
        assert results[name]["turns"]["mean"] == 2 and results[name]["searches"]["mean"] == 1
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr()
    assert "average of 2 sets" in shown.out and "arXiv:2503.09516" in shown.out
    assert "Traceback" not in shown.err


def test_a_run_continues_where_it_was_cut_off(tmp_path: Path, tokenizer_folder: Path) -> None:
    with serving(Geographer()) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever)
        assert run.main(command) == 0
        path = tmp_path / "out" / "trajectories.jsonl"
        first, second, third, _ = path.read_text().splitlines()
        path.write_text(f"{first}\n{second}\n{third[:100]}")  # killed in the middle of a line
        asked = len(engine.requests)
        assert run.main(command) == 0
        assert len(engine.requests) - asked == 2 * 2  # two questions, two turns each
        assert path.read_text().splitlines()[:2] == [first, second]
        assert len(records_of(tmp_path / "out")) == 4
        assert run.main(command) == 0  # nothing left to ask
        assert len(engine.requests) - asked == 4


class Wavering(Geographer):
    """Right in every second sample of a question."""

    def __init__(self) -> None:
        super().__init__(searches=False)
        self.asked: Counter[str] = Counter()

    def __call__(self, request: dict) -> Turn:
        text = self.tokenizer.decode(request["input_ids"])
        self.asked[text] += 1
        self.wrong = tuple(CAPITALS) if self.asked[text] % 2 else ()
        return super().__call__(request)


def test_several_samples_of_each_question_give_pass_at_k_and_a_majority(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Wavering()) as (engine, retriever):
        more = ("--samples", 4, "--temperature", 1)
        assert run.main(arguments(tmp_path, tokenizer_folder, engine, retriever, *more)) == 0
    records = records_of(tmp_path / "out")
    assert Counter(record["sample"] for record in records) == dict.fromkeys(range(4), 4)
    assert sorted(record["index"] for record in records) == list(range(16))
    assert all(record["group_index"] == record["index"] // 4 for record in records)
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["nq"]
    assert results["questions"] == 4 and results["em"]["mean"] == 0.5
    assert results["pass@2"]["mean"] == pytest.approx(1 - 1 / 6) and results["pass@4"]["mean"] == 1
    assert results["majority@4"]["mean"] == 0.5  # a tie of two answers
    assert "pass@2" in capsys.readouterr().out


def test_a_run_of_several_samples_continues_sample_by_sample(tmp_path: Path, tokenizer_folder: Path) -> None:
    with serving(Geographer(searches=False)) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever, "--samples", 3, "--temperature", 1)
        assert run.main(command) == 0
        path = tmp_path / "out" / "trajectories.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[:7]) + "\n" + lines[7][:50])
        asked = len(engine.requests)
        assert run.main(command) == 0
        assert len(engine.requests) - asked == 12 - 7
    records = records_of(tmp_path / "out")
    assert len({(record["id"], record["sample"]) for record in records}) == len(records) == 12


def test_greedy_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(
            ["--model", "m", "--engine", "demo", "--search", "none", "--data", "d", "--output", "o", "--samples", "2"]
        )
    assert "--samples needs a --temperature above 0" in capsys.readouterr().err


def test_a_run_with_other_settings_is_refused(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Geographer()) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever)
        assert run.main(command) == 0
        before = (tmp_path / "out" / "trajectories.jsonl").read_bytes()
        assert run.main([*command, "--temperature", "0.5"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has a run with other settings" in error and "temperature was 0.0 and is now 0.5" in error
    assert (tmp_path / "out" / "trajectories.jsonl").read_bytes() == before


def test_a_discarded_question_counts_as_wrong_and_is_asked_again(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Geographer(status=400)
    with serving(model) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever)
        assert run.main(command) == 1
        assert "4 of 4 questions were discarded" in capsys.readouterr().err.splitlines()[-1]
        results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["nq"]
        assert results["em"]["mean"] == 0 and results["gave_up"]["mean"] == 1
        model.status = 200
        assert run.main(command) == 0
    assert [record["scores"]["em"] for record in records_of(tmp_path / "out")] == [1.0] * 4


def test_failed_searches_are_reported(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_R1_SEARCH_RETRIES", "0")
    from aiohttp import web

    with serving(Geographer()) as (engine, retriever):
        retriever.trouble = lambda number: web.Response(status=500)
        assert run.main(arguments(tmp_path, tokenizer_folder, engine, retriever)) == 0
    assert "warning: 4 of 4 searches failed" in capsys.readouterr().err


@pytest.mark.parametrize("searches", [False, True])
def test_closed_book_asks_without_a_word_about_searching_and_never_searches(
    tmp_path: Path, tokenizer_folder: Path, searches: bool
) -> None:
    model = Geographer(searches=searches)
    with serving(model) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever, "--search", "none")
        assert run.main(command) == 0
        assert retriever.queries == []
        assert len(engine.requests) == 4  # one turn each
    assert len(model.prompts) == 4 and not any("search" in prompt for prompt in model.prompts)
    scores = [record["scores"] for record in records_of(tmp_path / "out")]
    assert [row["em"] for row in scores] == [0.0 if searches else 1.0] * 4
    assert [row["truncated"] for row in scores] == [1.0 if searches else 0.0] * 4


def test_settings_come_from_the_file_that_training_had(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "settings.yaml").write_text("max_turns: 2\ntopk: 7\nllm_api_mode: chat\n")
    with serving(Geographer()) as (engine, retriever):
        more = ("--custom_config_path", tmp_path / "settings.yaml", "--max_response_len", 33)
        assert run.main(arguments(tmp_path, tokenizer_folder, engine, retriever, *more)) == 0
        assert {request["sampling_params"]["max_new_tokens"] for request in engine.requests} == {33}
        assert {request["sampling_params"]["temperature"] for request in engine.requests} == {0.0}
    config = json.loads((tmp_path / "out" / "settings.json").read_text())["config"]
    assert (config["max_turns"], config["topk"], config["llm_api_mode"]) == (2, 7, "generate")
    assert "google_api_key" not in config


WRONG = [
    (["--engine", "http://127.0.0.1:1"], "The engine at http://127.0.0.1:1 cannot be reached"),
    (["--engine", "https://host/v1"], "'https://host/v1' is not an address of the form http://HOST:PORT"),
    (["--search", "local:http://127.0.0.1:1"], "The retriever at http://127.0.0.1:1 cannot be reached"),
    (["--search", "bing"], "--search is 'bing'; it must be local:URL, google or none"),
    (["--search", "google"], "GOOGLE_API_KEY"),
    (["--mode", "chat"], "--mode is chat, but the data was prepared for xml"),
    (["--data", "none.parquet"], "Cannot read none.parquet"),
    (["--data", "none.csv"], "none.csv is neither .parquet nor .jsonl"),
    (["--custom_config_path", "none.yaml"], "none.yaml cannot be read"),
    (["--apply_chat_template_kwargs", "{"], "--apply_chat_template_kwargs is not JSON"),
]


@pytest.mark.parametrize(("flags", "sentence"), WRONG)
def test_wrong_arguments_are_reported_in_one_sentence(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    with serving(Geographer()) as (engine, retriever):
        assert run.main(arguments(tmp_path, tokenizer_folder, engine, retriever, *flags)) == 1
        assert engine.requests == []
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and len(shown.splitlines()) == 1 and sentence in shown


def test_two_processes_do_not_share_a_folder(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Geographer()) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever)
        assert run.main(command) == 0
        with (tmp_path / "out" / "trajectories.jsonl").open("a") as other:
            import fcntl

            fcntl.flock(other, fcntl.LOCK_EX)
            assert run.main(command) == 1
    assert "Another evaluation is writing to" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_finished_and_says_so(
    tmp_path: Path, tokenizer_folder: Path, ending: signal.Signals
) -> None:
    model = Geographer()
    answer = model.__call__

    def slow(request: dict) -> Turn:
        turn = answer(request)
        if "Cuba" in model.tokenizer.decode(request["input_ids"]):
            turn.delay_s = 60
        return turn

    with serving(slow) as (engine, retriever):
        command = arguments(tmp_path, tokenizer_folder, engine, retriever)
        process = subprocess.Popen(
            [sys.executable, "-m", "evaluation.run", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        path = tmp_path / "out" / "trajectories.jsonl"
        while time.monotonic() < deadline and (not path.exists() or len(path.read_text().splitlines()) < 3):
            time.sleep(0.1)
        process.send_signal(ending)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert shown.splitlines()[-1] == "interrupted; run the same command again to continue" and "Traceback" not in shown
    assert len(records_of(tmp_path / "out")) == len(CAPITALS) - 1


@pytest.mark.slow
@pytest.mark.model
def test_a_terminated_run_takes_its_engine_along(tmp_path: Path) -> None:
    save_model(tmp_path / "model", tiny_tokenizer())
    data, log = write_data(tmp_path / "test.jsonl"), tmp_path / "out" / "engine.log"
    flags = [
        "--model",
        tmp_path / "model",
        "--engine",
        "demo",
        "--search",
        "none",
        "--data",
        data,
        "--output",
        log.parent,
    ]
    command = [sys.executable, "-m", "evaluation.run", *map(str, flags), "--max_response_len", "400"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline, port = time.monotonic() + 90, None
        while time.monotonic() < deadline and port is None:
            port = re.search(r"http://127.0.0.1:(\d+)", log.read_text()) if log.exists() else None
            time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == 130
    assert port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port[1])), timeout=5)
