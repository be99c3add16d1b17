"""`search-r1 view`: samples from dumps and JSONL, into a page that is data and our own script only."""

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from viewer_helpers import END, HOSTILE, byte_tokenizer, embedded, embedded_records, sample, search, write_jsonl

from evaluation import view
from evaluation.viewer_data import title

pytestmark = pytest.mark.model  # importing transformers takes seconds

TOKENIZER = byte_tokenizer()
PARTS = [
    ("turn", "<search>capital of Kenya</search>"),
    ("observation", "<information>Nairobi</information>"),
    ("turn", "Ja: Nairobi 你好"),
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return folder


def page_of(tmp_path: Path, *samples: dict[str, Any]) -> str:
    """The page of these samples."""
    view.write_page([write_jsonl(tmp_path / "x.jsonl", list(samples))], TOKENIZER, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def rows_of(tmp_path: Path, *samples: dict[str, Any]) -> list[dict[str, Any]]:
    return embedded(page_of(tmp_path, *samples))["index"]["rows"]


def dump(path: Path, samples: list[dict[str, Any]]) -> Path:
    torch.save({"rollout_id": 7, "samples": samples}, path)
    return path


def test_a_dump_and_jsonl_of_the_same_samples_give_the_same_page(tmp_path, tokenizer_folder, capsys):
    samples = [sample(TOKENIZER, PARTS, searches=[search()], reward=reward) for reward in (0.0, 1.0)]
    files = dump(tmp_path / "a.pt", samples), write_jsonl(tmp_path / "a.jsonl", samples)
    pages = []
    for file in files:
        output = tmp_path / "pages" / f"{file.suffix}.html"
        assert view.main([str(file), "--tokenizer", str(tokenizer_folder), "--output", str(output)]) == 0
        assert f"{output}: 2 trajectories" in capsys.readouterr().out
        pages.append(embedded(output.read_text(encoding="utf-8")))
    for file, page in zip(files, pages, strict=True):
        assert page["index"].pop("rescore")["a"].endswith(f"rescore {file} --preset paper --output rescored.jsonl")
    places = [[row.pop("where") for row in page["index"]["rows"]] for page in pages]
    assert places == [["sample 0", "sample 1"], ["line 1", "line 2"]]
    assert pages[0] == pages[1]


def test_row_and_record_hold_what_the_sample_says(tmp_path):
    fields = sample(TOKENIZER, PARTS, searches=[search()], score={"answer": "Nairobi"}, group_index=3)
    page = page_of(tmp_path, fields | {"data_source": "nq", "scores": {"f1": 0.5}})
    (row,), (record,) = embedded(page)["index"]["rows"], embedded_records(page)
    length = fields["response_length"]
    expected = {"question": "What is the capital of Kenya?", "gold": ["Nairobi"], "answer": "Nairobi", "reward": 1.0}
    expected |= {"right": True, "stop": "answered", "searches": 1, "tokens": length, "source": "nq"}
    expected |= {"group": "x  3", "phase": "", "id": ""}
    assert row.items() >= expected.items()
    assert row["trained"] == sum(fields["loss_mask"]) and row["notes"] == []
    assert record["ids"] == fields["tokens"] and record["mask"] == fields["loss_mask"]
    assert record["start"] == len(fields["tokens"]) - length
    assert record["log_probs"] == [round(1000 * value) for value in fields["rollout_log_probs"]]
    assert record["parts"] == {"exact_match": True, "answer": "Nairobi"} and record["counts"] == {"f1": 0.5}
    assert record["texts"] == {}


def test_the_table_of_tokens_has_texts_and_the_bytes_of_partial_characters(tmp_path):
    fields = sample(TOKENIZER, [("turn", f"a é{END}")])
    tokens = embedded(page_of(tmp_path, fields))["index"]["tokens"]
    shown = [tokens[str(token)] for token in fields["tokens"][-5:]]
    assert shown == ["a", " ", [0xC3], [0xA9], END]


def test_an_id_unknown_to_the_tokenizer_has_no_text(tmp_path):
    fields = sample(TOKENIZER, PARTS)
    fields["tokens"][-1] = 10**12
    fields["tokens"][-2] = -1
    page = page_of(tmp_path, fields)
    assert embedded(page)["index"]["tokens"][str(10**12)] == ""
    assert embedded(page)["index"]["rows"][0]["notes"] == ["text differs from decode(ids)"]


def test_texts_are_kept_where_the_ids_decode_to_something_else(tmp_path):
    fields = sample(TOKENIZER, PARTS, response="another text \ud800")
    page = page_of(tmp_path, fields, sample(TOKENIZER, PARTS, prompt="Kenya?"))
    first, second = embedded_records(page)
    assert first["texts"] == {"response": "another text \ud800"} and second["texts"] == {}


def test_notes_report_discarded_samples_and_misaligned_lists(tmp_path):
    discarded = sample(TOKENIZER, [("observation", "x")], reward=0.0, response="", stop="engine_failed")
    short = sample(TOKENIZER, PARTS, loss_mask=[1], rollout_log_probs=None)
    rows = rows_of(tmp_path, discarded, short)
    assert [row["notes"] for row in rows] == [
        ["discarded: not trained"],
        ["loss_mask does not have one value per token"],
    ]


def test_samples_without_our_metadata_mask_or_reward_are_shown(tmp_path):
    bare = {"tokens": [1, 2, 3], "response_length": 2, "prompt": [{"role": "user", "content": "Who?"}]}
    odd = bare | {"metadata": float("nan"), "reward": {"score": 0.5}, "rollout_log_probs": [None, float("-inf")]}
    rows = rows_of(tmp_path, bare, odd)
    assert [row["stop"] for row in rows] == ["unknown", "unknown"]
    assert [row["trained"] for row in rows] == [2, 2]  # no mask: all is trained
    assert rows[0]["question"] == "Who?" and rows[1]["reward"] is None


def test_a_dump_with_numpy_arrays_is_read(tmp_path):
    label = {"ground_truth": {"target": np.array(["Nairobi", "the city"], dtype=object)}}
    fields = sample(TOKENIZER, PARTS, label=label, reward=np.float64(0.2), rollout_routed_experts=np.zeros((2, 2)))
    view.write_page([dump(tmp_path / "a.pt", [fields])], TOKENIZER, tmp_path / "page.html")
    (row,) = embedded((tmp_path / "page.html").read_text())["index"]["rows"]
    assert row["gold"] == ["Nairobi", "the city"] and row["reward"] == 0.2


def test_other_objects_of_a_dump_are_loaded_on_request_only(tmp_path, tokenizer_folder, capsys):
    file = dump(tmp_path / "a.pt", [sample(TOKENIZER, PARTS, spec=Fraction(1, 2))])
    command = [str(file), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "page.html")]
    assert view.main(command) == 1
    message = capsys.readouterr().err
    assert "fractions.Fraction" in message and "--trust-pickle" in message and "Traceback" not in message
    assert view.main([*command, "--trust-pickle"]) == 0


GOOD = sample(TOKENIZER, PARTS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{}\nnothing\n{}\n", "line 1: `tokens` is not a list of whole numbers"),
        ("a.jsonl", b"nothing\n", "line 1 is not JSON"),
        ("a.jsonl", b"\xff\n", "line 1 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"tokens": [1], "response_length": 2}\n', "not a whole number from 0 to 1"),
        ("a.jsonl", b'{"tokens": [1, "2"], "response_length": 2}\n', "`tokens` is not a list of whole numbers"),
        ("a.jsonl", b"", "There is no trajectory in these files."),
        ("a.pt", b"nothing", "is not a"),
        ("a.pt", b"", "is not a"),
    ],
)
def test_an_unusable_file_is_reported_with_its_line_or_sample(
    tmp_path, tokenizer_folder, capsys, name, content, message
):
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "page.html"
    assert view.main([str(tmp_path / name), "--tokenizer", str(tokenizer_folder), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == [name]  # nothing half written


def test_a_dump_of_something_else_a_missing_file_and_a_missing_tokenizer_are_reported(
    tmp_path, tokenizer_folder, capsys
):
    torch.save([1], tmp_path / "a.pt")
    (tmp_path / "empty").mkdir()
    for file, tokenizer, message in (
        (tmp_path / "a.pt", tokenizer_folder, "is not a dump of --save-debug-rollout-data"),
        (tmp_path / "b.pt", tokenizer_folder, "There is no file"),
        (tmp_path / "a.pt", tmp_path / "empty", "holds no tokenizer"),
        (tmp_path / "a.pt", tmp_path / "nowhere", "There is no folder"),
    ):
        assert view.main([str(file), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "page.html")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", [GOOD])
    file.write_bytes(file.read_bytes() + b'{"tokens": [1')
    assert view.write_page([file], TOKENIZER, tmp_path / "page.html") == 1


def test_text_of_a_trajectory_never_reaches_the_page_unescaped(tmp_path):
    fields = sample(TOKENIZER, [("turn", HOSTILE)], prompt=HOSTILE, searches=[search(HOSTILE, HOSTILE)], stop=HOSTILE)
    plain, hostile = page_of(tmp_path, GOOD), page_of(tmp_path, fields)
    without_data = [re.sub(r'id="(index|chunk-0)">[A-Za-z0-9+/=]+<', "", page) for page in (plain, hostile)]
    assert without_data[0] == without_data[1]
    assert embedded(hostile)["index"]["rows"][0]["question"].startswith("<img")


def test_records_come_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.page_data.CHUNK_IDS", 2 * len(GOOD["tokens"]))
    samples = [sample(TOKENIZER, PARTS, searches=[search(f"query {n}")], index=n) for n in range(5)]
    data = embedded(page_of(tmp_path, *samples))
    assert data["index"]["starts"] == [0, 2, 4]
    assert [len(data[f"chunk-{n}"]) for n in range(3)] == [2, 2, 1]


def test_files_with_equal_names_are_shown_with_their_paths(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    files = [write_jsonl(tmp_path / folder / "x.jsonl", [GOOD]) for folder in ("a", "b")]
    view.write_page(files, TOKENIZER, tmp_path / "page.html")
    rows = embedded((tmp_path / "page.html").read_text())["index"]["rows"]
    assert [row["file"] for row in rows] == [str(file) for file in files]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("<|im_start|>user\nWhat is up?<|im_end|>\n<|im_start|>assistant\n", "What is up?"),
        ("Answer the question. Use <search>. Question: who won?\n", "who won?"),
        ([{"role": "system", "content": "Answer."}, {"role": "user", "content": "Who won it?"}], "Who won it?"),
        ([{"role": "user", "content": [{"type": "image"}]}], ""),
        ("word", "word"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_title_is_the_prompts_question(prompt, question):
    assert title(prompt, {}) == question
    assert title(prompt, {"question": "from the metadata"}) == "from the metadata"


def test_the_folder_of_a_run_or_an_evaluation_is_enough(tmp_path, tokenizer_folder, capsys):
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    for folder in (run, evaluation):
        folder.mkdir()
        write_jsonl(folder / "trajectories.jsonl", [GOOD | {"phase": "after"}])
    (run / "summary.json").write_text("{}")
    TOKENIZER.save_pretrained(run / "tokenizer")
    (evaluation / "settings.json").write_text(json.dumps({"model": str(tokenizer_folder)}))
    for folder in (run, evaluation):
        assert view.main([str(folder)]) == 0
        page = (folder / "trajectories.html").read_text(encoding="utf-8")
        assert embedded(page)["index"]["rows"][0]["phase"] == "after"
        assert f"{folder / 'trajectories.html'}: 1 trajectories" in capsys.readouterr().out
    assert view.main([str(evaluation / "trajectories.jsonl"), "--output", str(tmp_path / "page.html")]) == 0
    (evaluation / "settings.json").unlink()
    assert view.main([str(evaluation)]) == 1
    assert "Give --tokenizer" in capsys.readouterr().err


def test_the_log_of_an_older_demo_is_named_as_such(tmp_path, tokenizer_folder, capsys):
    file = write_jsonl(tmp_path / "trajectories.jsonl", [{"tokens": ["<search>"], "reward_parts": {}}])
    assert view.main([str(file), "--tokenizer", str(tokenizer_folder)]) == 1
    assert "this demo log is from an older version and has no token ids" in capsys.readouterr().err


def test_a_dump_of_version_0_1_still_opens(tmp_path):
    old = json.loads((Path(__file__).parent / "sample_of_0_1.json").read_text(encoding="utf-8"))
    page = page_of(tmp_path, old)
    (record,) = embedded_records(page)
    assert [kind for kind, _ in record["segments"]] == ["turn", "observation", "turn"]
    assert record["searches"][0]["query"] == "capital of Kenya 0" and len(record["searches"][0]["documents"]) == 3
    assert record["parts"]["exact_match"] is True
    (row,) = embedded(page)["index"]["rows"]
    assert (row["stop"], row["answer"], row["right"]) == ("answered", "Nairobi", True)
