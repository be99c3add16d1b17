"""`search-r1 audit-corpus`: what a corpus holds for the questions of evaluation sets."""

import argparse
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from retriever_fakes import minilm_folder

from demo.world_facts import Question, build_world
from local_dense_retriever import audit, build_index
from local_dense_retriever.corpus import Corpus, Passage
from local_dense_retriever.gold_pages import asked, title_key
from local_dense_retriever.loading import add_index_arguments, load_retriever
from local_dense_retriever.notes import SetAudit, read_audits, sentence
from qa_em_format import any_holds_gold

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "Ed Wood": "Edward Davis Wood Jr. was an American film maker.",
    "Scott Derrickson": "Scott Derrickson, born 1966, lives in Los Angeles.",
    '"Heroes" (David Bowie album)': 'Recorded in West Berlin: "Heroes" is an album.',
    "Mercury (planet)": "The planet that is nearest to the Sun.",
}
HOTPOT = {
    "id": "dev_0",
    "question": "Were they of the same nationality?",
    "golden_answers": ["yes"],
    "metadata": {"supporting_facts": {"title": ["Scott Derrickson", "Ed Wood", "Ed Wood"], "sent_id": [0, 0, 1]}},
}
MUSIQUE = {
    "id": "2hop__1",
    "question": "Where was it recorded?",
    "golden_answers": ["West Berlin", "the western part of Berlin"],
    "metadata": {
        "question_decomposition": [
            {"support_paragraph": {"title": "“Heroes” (David Bowie album)", "paragraph_text": "…"}},
            {"support_paragraph": {"title": "Berlin Wall", "paragraph_text": "…"}},
        ]
    },
}


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"id": str(n), "contents": f'"{title}"\n{text}'} for n, (title, text) in enumerate(PAGES.items())]
    return write_jsonl(tmp_path / "c.jsonl", rows)


def audit_of(corpus: Path, *rows: dict[str, Any], name: str = "a_set") -> SetAudit:
    file = write_jsonl(corpus.parent / f"{name}.jsonl", rows)
    return audit.audit(Corpus(corpus), [file])[0]


def plain(*golds: str, **more: Any) -> dict[str, Any]:
    return {"question": "q?", "golden_answers": list(golds), **more}


# ---- Answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golds", "found"),
    [
        (["Los Angeles"], True),
        (["los angeles!"], True),
        (["The Los Angeles"], True),
        (["Angel"], False),
        (["Los Angeles lives"], False),
        (["ves in Los"], False),  # its other words are whole
        (["nowhere", "1966"], True),
        (["Ed Wood"], True),  # a title
        (["wood edward"], True),  # title and text are one text, as for the reward
        (["Sun"], True),
    ],
)
def test_an_answer_is_found_as_whole_words_normalised_as_exact_match_does(
    corpus: Path, golds: list[str], found: bool
) -> None:
    result = audit_of(corpus, plain(*golds))
    assert (result.looked_up, result.answered) == (1, int(found))
    contents = [f'"{title}"\n{text}' for title, text in PAGES.items()]
    assert any(any_holds_gold([text], golds) for text in contents) == found


def test_the_search_finds_what_a_plain_one_finds() -> None:
    """Answers that share words, hold each other or repeat a word, in passages of the same few words."""
    words = ["red", "green", "blue", "the", "sky", "was"]
    answers = [" ".join(words[(n * step) % 6] for n in range(length)) for step in (1, 2, 5) for length in (1, 2, 3, 4)]
    passages = [f'"t{n}"\n' + " ".join(words[(n * k + n // 3) % 6] for k in range(7)) for n in range(40)]
    rows = [asked(plain(answer), "a", number) for number, answer in enumerate(answers)]
    for read in range(1, len(passages)):
        _, lacking = audit.lacking([Passage(str(n), passages[n]) for n in range(read)], rows)
        for row in rows:
            held = any(any_holds_gold([text], row.golds) for text in passages[:read])
            assert row.answers.isdisjoint(lacking) == held or not row.answers


@pytest.mark.parametrize("golds", [["yes"], ["No."], ["the"], ["!!!"]])
def test_yes_no_and_what_normalises_to_nothing_are_not_looked_up(corpus: Path, golds: list[str]) -> None:
    result = audit_of(corpus, plain(*golds), plain("Los Angeles"))
    assert (result.questions, result.looked_up, result.answered, result.missing_answers) == (2, 1, 1, [])


# ---- Pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("Ed Wood", "ed_wood"),
        ("AT&amp;T", "AT&T"),
        ("“Heroes” (album)", '"Heroes" (album)'),
        ("Beyoncé", "Beyonce\N{COMBINING ACUTE ACCENT}"),
        ("Rock ’n’ Roll", "Rock 'n' Roll"),
        ("Sino–Soviet  split", "Sino-Soviet split"),
    ],
)
def test_spellings_of_one_title_are_one_page(written: str, same: str) -> None:
    assert title_key(written) == title_key(same)


@pytest.mark.parametrize(("one", "another"), [("Mercury (planet)", "Mercury"), ("Beyoncé", "Beyonce"), ("C", "C++")])
def test_pages_with_similar_titles_stay_separate(one: str, another: str) -> None:
    assert title_key(one) != title_key(another)


def test_supporting_titles_of_hotpotqa_are_looked_up_once_each(corpus: Path) -> None:
    result = audit_of(corpus, HOTPOT)
    assert (result.named, result.complete, result.missing_pages, result.bound) == (1, 1, [], 1.0)


def test_missing_titles_of_musique_are_named_with_their_questions(corpus: Path) -> None:
    result = audit_of(corpus, MUSIQUE, {**MUSIQUE, "id": "2hop__2"})
    assert result.missing_pages == [{"title": "Berlin Wall", "questions": ["2hop__1", "2hop__2"]}]
    assert (result.answered, result.complete, result.bound) == (2, 0, 0.0)


def test_a_question_of_the_demo_needs_passages_by_id(corpus: Path) -> None:
    hops = [{"query": "q", "passage_id": "1", "found": "x"}, {"query": "q", "passage_id": "gone", "found": "y"}]
    result = audit_of(corpus, {"id": "held-0", "text": "q?", "answers": ["Los Angeles"], "hops": hops})
    assert (result.name, result.answered, result.complete) == ("demo", 1, 0)
    assert result.missing_pages == [{"passage_id": "gone", "questions": ["held-0"]}]


def test_a_bound_is_claimed_only_where_every_question_names_its_pages(corpus: Path) -> None:
    whole = audit_of(corpus, HOTPOT, MUSIQUE)
    assert whole.bound == 0.5
    assert "cannot exceed 0.500 by reading the pages that its 2 questions need" in sentence(whole)
    partly = audit_of(corpus, MUSIQUE, plain("Paris"))
    assert (partly.named, partly.complete, partly.bound) == (1, 0, None)
    assert "cannot exceed" not in sentence(partly) and "a hint, not a bound" in sentence(partly)


def test_a_step_without_its_paragraph_leaves_the_pages_unknown() -> None:
    steps = [*MUSIQUE["metadata"]["question_decomposition"], {"support_paragraph": None}]  # type: ignore[index]
    assert asked({**MUSIQUE, "metadata": {"question_decomposition": steps}}, "musique", 1).pages == {}


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_flashrags_folders_name_the_sets(corpus: Path) -> None:
    files = [
        write_jsonl(corpus.parent / "hotpotqa" / "dev.jsonl", [HOTPOT]),
        write_jsonl(corpus.parent / "musique" / "dev.jsonl", [MUSIQUE]),
    ]
    assert [result.name for result in audit.audit(Corpus(corpus), files)] == ["hotpotqa", "musique"]


def test_prompt_data_is_read_too(corpus: Path, tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "q?"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Los Angeles"]}},
        "data_source": "nq",
        "extra_info": {"id": "nq/test_4"},
        "metadata": {"question": "q?", "supporting_facts": None},
    }
    other = {**row, "reward_model": {"style": "rule", "ground_truth": {"target": ["Atlantis"]}}}
    file = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([row, other]), file)
    (result,) = audit.audit(Corpus(corpus), [file])
    assert (result.name, result.answered, result.named, result.bound) == ("nq", 1, 0, None)
    assert result.missing_answers == [{"golds": ["Atlantis"], "question": "nq/test_4"}]


def test_titles_in_parquet_are_found(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "hotpotqa.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([HOTPOT]), file)
    assert audit.audit(Corpus(corpus), [file])[0].complete == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "have no questions"),
        ("not json\n", "row 0 or the next cannot be read as a question"),
        ('{"golden_answers": ["x"]}\n[1]\n', "row 2 or the next cannot be read"),
        ('{"question": "q?"}\n', "it has no gold answer"),
        ('{"golden_answers": [" "]}\n', "it has no gold answer"),
        ('{"golden_answers": ["x"], "metadata": {"supporting_facts": {}}, "id": 1}\n', None),
        ('{"golden_answers": ["x"], "metadata": {"supporting_facts": {"titles": []}}}\n', "cannot be read"),
        ('{"golden_answers": ["x"], "metadata": "text"}\n', "cannot be read"),
    ],
)
def test_bad_data_is_reported_in_one_sentence(
    corpus: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str | None
) -> None:
    (file := corpus.parent / "bad.jsonl").write_text(text)
    assert audit.main(["--corpus_path", str(corpus), "--data", str(file)]) == (1 if complaint else 0)
    error = capsys.readouterr().err
    assert complaint is None or (complaint in error and error.count("\n") == 1)


def test_missing_files_are_reported_in_one_sentence(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none.jsonl", "c.csv"):
        (corpus.parent / "c.csv").touch()
        assert audit.main(["--corpus_path", str(corpus), "--data", str(corpus.parent / name)]) == 1
        assert "check --data" in capsys.readouterr().err
    assert audit.main(["--corpus_path", "none", "--data", str(corpus)]) == 1


# ---- What is kept ----------------------------------------------------------------------------------------------------


def test_an_audit_is_not_made_twice_until_corpus_or_questions_change(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[str] = []
    real = audit.title_key
    monkeypatch.setattr(audit, "_title_key", lambda title: looked.append(title) or real(title))
    first = audit_of(corpus, MUSIQUE)
    assert len(looked) == len(PAGES)
    assert audit_of(corpus, MUSIQUE) == first and len(looked) == len(PAGES)
    assert "was audited before" in capsys.readouterr().out
    assert audit_of(corpus, MUSIQUE, HOTPOT) != first and len(looked) == 2 * len(PAGES)
    with corpus.open("a") as file:
        file.write('{"id": "9", "contents": "\\"Berlin Wall\\"\\nIt fell."}\n')
    assert read_audits(Corpus(corpus)) == []
    assert audit_of(corpus, MUSIQUE).bound == 1.0


def test_audits_of_other_sets_are_kept(corpus: Path) -> None:
    audit_of(corpus, MUSIQUE, name="one")
    audit_of(corpus, HOTPOT, name="two")
    assert [kept.name for kept in read_audits(Corpus(corpus))] == ["one", "two"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"corpus": 1, "sets": []}', '{"corpus": "CORPUS", "sets": [{}]}'])
def test_an_unreadable_note_is_ignored(corpus: Path, text: str) -> None:
    audit_of(corpus, HOTPOT)
    note = corpus.with_name("c.jsonl.audit.json")
    note.write_text(text.replace("CORPUS", Corpus(corpus).digest))
    assert read_audits(Corpus(corpus)) == []
    assert audit_of(corpus, HOTPOT).complete == 1


def test_all_that_is_missing_is_written_as_json_lines(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(corpus.parent / "musique" / "dev.jsonl", [MUSIQUE, plain("Atlantis", id="x")])
    missing = corpus.parent / "missing.jsonl"
    for _ in range(2):  # found, and known
        assert audit.main(["--corpus_path", str(corpus), "--data", str(data), "--missing", str(missing)]) == 0
        assert [json.loads(line) for line in missing.read_text().splitlines()] == [
            {"set": "musique", "title": "Berlin Wall", "questions": ["2hop__1"]},
            {"set": "musique", "golds": ["Atlantis"], "question": "x"},
        ]
        assert "missing title 'Berlin Wall', needed by question 2hop__1" in capsys.readouterr().out
        missing.unlink()


def test_it_runs_by_path_and_as_a_command(corpus: Path) -> None:
    data = write_jsonl(corpus.parent / "hotpotqa" / "dev.jsonl", [HOTPOT])
    arguments = ["--corpus_path", str(corpus), "--data", str(data)]
    for program in (["local_dense_retriever/audit.py"], ["-m", "search_r1_cli", "audit-corpus"]):
        done = subprocess.run(
            [sys.executable, *program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "") and "hotpotqa" in done.stdout


@pytest.mark.slow
@pytest.mark.model
def test_passages_missing_from_the_demos_world_are_named_and_an_append_brings_them_back(tmp_path: Path) -> None:
    """With real passages, questions and encoder; who reads all that a search finds answers what the bound allows."""
    world = build_world()
    questions = world.held_out[:16]
    (data := tmp_path / "held_out.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in questions))
    needed = {hop.passage_id for question in questions for hop in question.hops}
    gone = set(sorted(needed)[::3])
    some = [passage for n, passage in enumerate(world.passages) if passage["id"] in needed or n % 40 == 0]
    corpus = write_jsonl(tmp_path / "c.jsonl", [passage for passage in some if passage["id"] not in gone])
    more = write_jsonl(tmp_path / "more.jsonl", [passage for passage in some if passage["id"] in gone])
    (tmp_path / "whole.jsonl").write_text(corpus.read_text() + more.read_text())
    assert build_index.main(index_flags(corpus)) == build_index.main(index_flags(tmp_path / "whole.jsonl")) == 0

    (before,) = audit.audit(Corpus(corpus), [data])
    assert {page["passage_id"] for page in before.missing_pages} == gone
    untouched = [question for question in questions if gone.isdisjoint(hop.passage_id for hop in question.hops)]
    assert before.bound == len(untouched) / len(questions) < 1
    assert answered_by_reading(corpus, questions) <= before.bound

    assert build_index.main([*index_flags(corpus), "--append", str(more)]) == 0
    assert corpus.with_suffix(".index").read_bytes() == (tmp_path / "whole.index").read_bytes()
    (after,) = audit.audit(Corpus(corpus), [data])
    assert after.missing_pages == [] and after.bound == 1.0
    assert answered_by_reading(corpus, questions) > before.bound


def index_flags(corpus: Path) -> list[str]:
    paths = ["--corpus_path", str(corpus), "--index_path", str(corpus.with_suffix(".index"))]
    return [*paths, "--retriever_name", "minilm", "--retriever_model", minilm_folder()]


def answered_by_reading(corpus: Path, questions: Sequence[Question]) -> float:
    """The share of questions whose passages are all found by the searches that lead to them."""
    parser = argparse.ArgumentParser()
    add_index_arguments(parser)
    retriever = load_retriever(parser.parse_args(index_flags(corpus)), lambda what: None)
    found = [
        all(hop.passage_id in (hit.passage.id for hit in retriever.search([hop.query], 3)[0]) for hop in question.hops)
        for question in questions
    ]
    return sum(found) / len(found)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """A corpus of 7 MB: the memory that Python allocates stays under 2 MB."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(8_000):
            file.write(json.dumps({"id": str(number), "contents": f'"t{number}"\n' + f"word{number} " * 90}) + "\n")
    corpus = Corpus(path)
    data = write_jsonl(tmp_path / "q.jsonl", [HOTPOT, MUSIQUE])
    tracemalloc.start()
    audit.audit(corpus, [data])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 6e6 and peak < 2e6
