"""Data preparation: rows in, rows out; where splits come from; what happens when something is wrong."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_fixtures import ROWS, UNUSABLE

import oai_format_data_preprocess
from oai_format_data_preprocess import DATA_SOURCES, MODES, Unusable, convert, parquet_schema
from search_rollout.protocols.prompts import prompt_row

ROOT = Path(__file__).resolve().parents[2]
QUESTION = {"question": "who wrote Emma", "golden_answers": ["Jane Austen"]}


def prepared(row, mode, split="train", index=0, source="own"):
    """What must become of a fixture's row."""
    source = row.source or source
    name = row.id or f"{source}/{row.raw.get('id', f'{split}_{index}')}"
    extra = {"id": name, "split": split, "index": index}
    return prompt_row(row.question, row.golds, source, mode=mode, extra=extra)


def run(*arguments):
    return oai_format_data_preprocess.main([str(argument) for argument in arguments])


def read(path):
    return pq.read_table(path).to_pylist()


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", MODES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_of_each_shape_becomes_prompt_data(row, form):
    converted = convert(row.raw, mode=MODES[form], split="train", index=5, source="own")
    assert converted == prepared(row, MODES[form], index=5)
    assert set(converted) == set(parquet_schema(MODES[form]).names)


@pytest.mark.parametrize(("raw", "reason"), [*UNUSABLE, ({**QUESTION, "question": "\ud800?"}, "not Unicode")])
def test_a_row_that_cannot_be_used_says_why(raw, reason):
    assert convert(raw, mode="chat", split="train", index=0, source="own") == Unusable(reason)


@pytest.mark.parametrize("form", MODES)
def test_rows_survive_the_way_through_a_file(tmp_path, form):
    rows = [row for row in ROWS if "array" not in row.name]  # numpy has no JSON
    write_lines(tmp_path / "own.jsonl", [row.raw for row in rows])
    assert run("--input", tmp_path / "own.jsonl", "--local_dir", tmp_path, "--format", form) == 0
    assert read(tmp_path / "train.parquet") == [prepared(row, MODES[form], index=n) for n, row in enumerate(rows)]


def test_parquet_goes_in_as_json_lines_do(tmp_path):
    rows = [row for row in ROWS if row.name.startswith("search_r1")]
    pq.write_table(pa.Table.from_pylist([row.raw for row in rows]), tmp_path / "in.parquet")
    assert run("--input", tmp_path / "in.parquet", "--local_dir", tmp_path / "out", "--splits", "test") == 0
    expected = [prepared(row, "chat", "test", index) for index, row in enumerate(rows)]
    assert read(tmp_path / "out" / "test.parquet") == expected


def test_rows_that_cannot_be_used_are_counted_by_reason_and_listed_on_request(tmp_path, capsys):
    lines = [QUESTION, {"question": "q?"}, QUESTION, {"question": "", "golden_answers": ["x"]}, {"question": "r?"}]
    own = write_lines(tmp_path / "own.jsonl", [*lines, QUESTION, QUESTION])
    own.write_text(own.read_text(encoding="utf-8") + "\n{broken\n", encoding="utf-8")
    assert run("--input", own, "--local_dir", tmp_path) == 0
    out, err = capsys.readouterr()
    assert "4 rows (own 4)" in out and "2 rows left out: no gold answer" in out
    assert "1 rows left out: no question" in out and "1 rows left out: not JSON" in out and "row 1" not in err
    assert run("--input", own, "--local_dir", tmp_path, "--overwrite", "--list_skipped") == 0
    err = capsys.readouterr().err
    assert "own.jsonl row 1: no gold answer: {'question': 'q?'}" in err and err.count("row ") == 4


def test_a_file_that_exists_is_replaced_on_request_only(tmp_path, capsys):
    own = write_lines(tmp_path / "own.jsonl", [QUESTION])
    assert run("--input", own, "--local_dir", tmp_path) == 0
    old = (tmp_path / "train.parquet").read_bytes()
    assert run("--input", own, "--local_dir", tmp_path, "--format", "xml") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'train.parquet'} already exists" in error and "--overwrite" in error
    assert (tmp_path / "train.parquet").read_bytes() == old
    assert run("--input", own, "--local_dir", tmp_path, "--format", "xml", "--overwrite") == 0
    assert (tmp_path / "train.parquet").read_bytes() != old


def test_a_row_without_a_known_answer_column_is_reported_with_the_known_fields(tmp_path, capsys):
    own = write_lines(tmp_path / "own.jsonl", [QUESTION, {"question": "who?", "answer": "Jane Austen"}])
    assert run("--input", own, "--local_dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert "no gold answer: it has `answer`; golden_answers (a list) or reward_model is read" in out


def test_most_rows_left_out_is_a_failure(tmp_path, capsys):
    own = write_lines(tmp_path / "own.jsonl", [QUESTION, {"question": "q?"}, {"question": "r?"}])
    assert run("--input", own, "--local_dir", tmp_path) == 1
    assert "most rows (2) were left out; --list_skipped shows them" in capsys.readouterr().err


def test_few_shot_turns_of_a_prompt_are_not_dropped_in_silence(tmp_path, capsys):
    turns = [("user", "Question: who wrote It?"), ("assistant", "Stephen King"), ("user", "Question: who wrote Emma?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    own = write_lines(tmp_path / "own.jsonl", [{"prompt": prompt, "golden_answers": ["Jane Austen"]}])
    assert run("--input", own, "--local_dir", tmp_path) == 0
    assert read(tmp_path / "train.parquet")[0]["metadata"]["question"] == "who wrote Emma?"
    assert "1 prompts had few-shot turns, which are dropped" in capsys.readouterr().err


# --- splits -------------------------------------------------------------------------------------------------------


def questions(source, count, **more):
    return [{"id": f"x_{n}", "question": f"{source} {n}", "golden_answers": [str(n)], **more} for n in range(count)]


def test_the_splits_of_a_merged_folder_are_its_files_and_shards(tmp_path):
    for shard in range(2):
        rows = questions(f"nq{shard}", 3, data_source="nq")
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    write_lines(tmp_path / "test.jsonl", questions("bamboogle", 2, data_source="bamboogle"))
    assert run("--input", tmp_path, "--local_dir", tmp_path / "out") == 0
    train = read(tmp_path / "out" / "train.parquet")
    assert [row["metadata"]["question"] for row in train] == [f"nq{s} {n}?" for s in range(2) for n in range(3)]
    assert [row["extra_info"]["index"] for row in train] == list(range(6))
    assert [row["data_source"] for row in read(tmp_path / "out" / "test.parquet")] == ["bamboogle"] * 2


def test_a_folder_for_each_data_source_is_merged_in_the_papers_order(tmp_path):
    for source in DATA_SOURCES["train"]:
        write_lines(tmp_path / source / "train.jsonl", questions(source, 2))
    for source in DATA_SOURCES["test"]:
        held_back = source in ("hotpotqa", "2wikimultihopqa", "musique")  # they have dev only
        write_lines(tmp_path / source / ("dev.jsonl" if held_back else "test.jsonl"), questions(source, 1))
    assert run("--input", tmp_path, "--local_dir", tmp_path / "out", "--format", "xml") == 0
    train, test = read(tmp_path / "out" / "train.parquet"), read(tmp_path / "out" / "test.parquet")
    assert [row["metadata"]["id"] for row in train] == ["nq/x_0", "nq/x_1", "hotpotqa/x_0", "hotpotqa/x_1"]
    assert [row["data_source"] for row in test] == DATA_SOURCES["test"]


def test_data_sources_choose_rows_and_folders(tmp_path):
    rows = questions("a", 2, data_source="a") + questions("b", 2, data_source="b")
    write_lines(tmp_path / "merged" / "train.jsonl", rows)
    for source in "ab":
        write_lines(tmp_path / "folders" / source / "train.jsonl", questions(source, 2))
    for folder, chosen, sources in (("merged", "b", "bb"), ("folders", "b,a", "bbaa")):
        assert (
            run(
                *("--input", tmp_path / folder, "--local_dir", tmp_path, "--splits", "train"),
                *("--data_sources", chosen, "--overwrite"),
            )
            == 0
        )
        assert "".join(row["data_source"] for row in read(tmp_path / "train.parquet")) == sources


def test_a_limit_draws_by_the_seed_and_keeps_the_order(tmp_path):
    own = write_lines(tmp_path / "own.jsonl", [{"question": "no answer"}, *questions("q", 200)])

    def drawn(*more):
        assert run("--input", own, "--local_dir", tmp_path / "out", "--overwrite", *more) == 0
        return [row["extra_info"]["index"] for row in read(tmp_path / "out" / "train.parquet")]

    ten = drawn("--limit", 10)
    assert len(ten) == 10 and ten == sorted(ten) and ten != list(range(1, 11))
    assert drawn("--limit", 10) == ten != drawn("--limit", 10, "--seed", 1)
    assert drawn("--limit", 1000) == list(range(1, 201))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    own = write_lines(tmp_path / "own.jsonl", questions("q", 5000))
    for out in ("one", "two"):
        assert run("--input", own, "--local_dir", tmp_path / out, "--limit", 4500) == 0
    assert (tmp_path / "one" / "train.parquet").read_bytes() == (tmp_path / "two" / "train.parquet").read_bytes()


# --- what can be wrong --------------------------------------------------------------------------------------------


def test_a_failing_split_is_reported_and_the_others_are_written(tmp_path, capsys):
    write_lines(tmp_path / "in" / "test.jsonl", [QUESTION])
    assert run("--input", tmp_path / "in", "--local_dir", tmp_path, "--splits", "train,test,dev") == 1
    err = capsys.readouterr().err
    assert "error: split train: " in err and "no train of nq" in err and "no dev split" in err
    assert len(read(tmp_path / "test.parquet")) == 1 and not (tmp_path / "train.parquet").exists()


BROKEN = {
    "no usable row": ("train.jsonl", json.dumps({"question": "q?"}).encode(), "no usable rows of any source"),
    "empty": ("train.jsonl", b"", "no usable rows of any source"),
    "not parquet": ("train.parquet", b"PAR1 no", "train.parquet"),
    "a source without rows": (
        "train.jsonl",
        json.dumps({**QUESTION, "data_source": "b"}).encode(),
        "no usable rows of a",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_failed_split_leaves_the_old_file_and_no_other(tmp_path, capsys, case):
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.parquet").write_text("old", encoding="utf-8")
    chosen = ["--data_sources", "a,b"] if "source" in case else []
    assert run("--input", tmp_path / name, "--local_dir", out, "--overwrite", *chosen) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert [path.name for path in out.iterdir()] == ["train.parquet"]
    assert (out / "train.parquet").read_text(encoding="utf-8") == "old"


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        yield QUESTION
        raise KeyboardInterrupt

    own = write_lines(tmp_path / "own.jsonl", [QUESTION])
    monkeypatch.setattr(oai_format_data_preprocess, "read_rows", interrupted)
    assert run("--input", own, "--local_dir", tmp_path / "out") == 130
    assert list((tmp_path / "out").iterdir()) == [] and "interrupted" in capsys.readouterr().err


def test_wrong_arguments_are_reported_in_one_sentence(tmp_path, capsys):
    own = write_lines(tmp_path / "own.jsonl", [QUESTION])
    assert run("--input", tmp_path / "none") == 1
    assert "does not exist" in capsys.readouterr().err
    assert run("--input", own, "--splits", "train,test") == 1
    assert "must be one split" in capsys.readouterr().err
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run("--input", own, "--local_dir", tmp_path / "file") == 1
    assert "split train: " in capsys.readouterr().err
    for wrong in (["--limit", "0"], ["--data_sources", ","], ["--input", "a", "--hf_repo_id", "b/c"]):
        with pytest.raises(SystemExit) as stop:
            run(*wrong)
        assert stop.value.code == 2


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, capsys):
    own = write_lines(tmp_path / "own.jsonl", [QUESTION])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run("--input", own, "--local_dir", tmp_path) == 1
    assert "pip install" in capsys.readouterr().err


def test_importing_does_nothing(tmp_path):
    names = "pyarrow", "huggingface_hub", "tqdm", "aiohttp", "slime", "torch"
    code = f"import sys, oai_format_data_preprocess; print([name for name in {names} if name in sys.modules])"
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("[]\n", "", [])


# --- the hub ------------------------------------------------------------------------------------------------------

REPO, COMMIT = "someone/questions", "c" * 40


@pytest.fixture
def hub():
    """A server of one data set, as far as the hub's client asks; its URL and its files."""
    files = {
        "README.md": b"# Questions",
        "train.jsonl": "".join(json.dumps(row) + "\n" for row in questions("q", 3, data_source="nq")).encode(),
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

        def answer(self, with_body):
            path = self.path.partition("?")[0]
            name = path.removeprefix(f"/datasets/{REPO}/resolve/main/")
            if path == f"/api/datasets/{REPO}/tree/main":
                entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
                status, body, headers = 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}
            elif name in files:
                status, body, headers = 200, files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            else:
                status, body, headers = 404, b"", {"X-Error-Code": "RepoNotFound"}
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)
    server.server_close()


def run_with_hub(url, tmp_path, *arguments):
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()},
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, ROOT / "oai_format_data_preprocess.py", "--local_dir", tmp_path / "out", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_data_set_comes_from_the_hub(hub, tmp_path):
    done = run_with_hub(hub, tmp_path, "--hf_repo_id", REPO, "--splits", "train")
    assert done.returncode == 0, done.stderr
    assert "3 rows (nq 3)" in done.stdout
    assert [row["metadata"]["id"] for row in read(tmp_path / "out" / "train.parquet")] == ["nq/x_0", "nq/x_1", "nq/x_2"]


@pytest.mark.parametrize("what", ["no such data set", "no hub"])
def test_a_data_set_that_cannot_be_had_is_reported_in_one_sentence(hub, tmp_path, what):
    done = run_with_hub("http://127.0.0.1:9" if what == "no hub" else hub, tmp_path, "--hf_repo_id", "someone/else")
    assert done.returncode == 1
    assert "someone/else cannot be read from the hub" in done.stderr and "--input" in done.stderr
    assert "Traceback" not in done.stderr
