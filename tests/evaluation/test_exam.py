"""`search-r1 exam`: five arms between a fake engine and a fake retriever, and the figures from them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_helpers import CAPITALS, Geographer, fresh_state, save_tokenizer, serving, write_data  # noqa: F401
from fakes import FakeEngine, FakeRetriever, Turn

from evaluation import exam
from evaluation.exam_figures import Figure, believes, examine, repeated_searches
from evaluation.questions import Question
from search_rollout.samples.record import RolloutRecord, Span
from search_rollout.samples.record import Turn as RecordedTurn
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

ARMS = ["retriever", "nothing", "random", "closed-book", "gold"]
FACTS = [f'"{country}"\nThe capital of {country} is {capital}.' for country, capital in CAPITALS.items()]


class Reader(Geographer):
    """Knows Peru's capital by heart; else says the first capital that it reads, and Atlantis where it reads none."""

    def __call__(self, request: dict) -> Turn:
        text = self.tokenizer.decode(request["input_ids"])
        asked = re.search("the capital of ([A-Z][a-z]+)[?]", text)
        assert asked
        if "<search>capital of" not in text and "memory" not in text:
            return Turn(f"<think>I look it up.</think>\n<search>capital of {asked[1]}</search>")
        read = re.search(r"The capital of \w+ is (\w+)\.", text)
        answer = "Lima" if asked[1] == "Peru" else read[1] if read else "Atlantis"
        return Turn(f"<think>So.</think>\n<answer>{answer}</answer>")


class Library(FakeRetriever):
    """Finds the passage about the country that the query names."""

    async def _retrieve(self, http_request: Any) -> Any:
        query = (await http_request.json())["queries"][0]
        self.documents = [fact for fact in FACTS if fact.split('"')[1] in query]
        return await super()._retrieve(http_request)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeEngine, FakeRetriever]]:
    monkeypatch.setattr("evaluation_helpers.FakeRetriever", Library)
    monkeypatch.setattr("search_rollout.search.local_retriever.MAX_QUERIES", 1)
    with serving(Reader()) as both:
        yield both


def data_with_gold(path: Path, without: str = "") -> Path:
    rows = [json.loads(line) for line in write_data(path).read_text().splitlines()]
    for row, fact in zip(rows, FACTS, strict=True):
        if not without or without not in fact:
            row["metadata"]["gold_passages"] = [fact]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(folder: Path, model: Path, servers: tuple[FakeEngine, FakeRetriever], data: Path) -> list[str]:
    engine, retriever = servers
    parts = ["--model", model, "--engine", f"http://127.0.0.1:{engine.port}", "--output", folder / "out"]
    return [str(part) for part in (*parts, "--search", f"local:{retriever.url}", "--data", data)]


def records(folder: Path, arm: str) -> dict[str, dict[str, Any]]:
    lines = (folder / "out" / arm / "trajectories.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {re.search("capital of (.*)[?]", record["metadata"]["question"])[1]: record for record in found}  # type: ignore[index]


def passages(record: dict[str, Any]) -> list[str]:
    turns = record["metadata"]["search_r1"]["turns"]
    return [
        f'"{title}"\n{text}' for turn in turns for one in turn.get("results", []) for title, text, *_ in one["passages"]
    ]


def test_each_arm_shows_the_model_what_it_should(
    tmp_path: Path,
    tokenizer_folder: Path,
    servers: tuple[FakeEngine, FakeRetriever],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(tmp_path, tokenizer_folder, servers, data_with_gold(tmp_path / "test.jsonl"))
    assert exam.main(command) == 0
    facts = dict(zip(CAPITALS, FACTS, strict=True))
    for country, fact in facts.items():
        assert passages(records(tmp_path, "retriever")[country]) == [fact]
        assert passages(records(tmp_path, "gold")[country]) == [fact]
        assert passages(records(tmp_path, "nothing")[country]) == []
        shown = passages(records(tmp_path, "random")[country])
        assert len(shown) == 3 and set(shown) == set(FACTS) - {fact}  # never what was found for the question itself
        assert "memory" in records(tmp_path, "closed-book")[country]["prompt"]
    counts = {arm: sum(int(row["scores"]["searches"]) for row in records(tmp_path, arm).values()) for arm in ARMS}
    assert counts == {"retriever": 4, "nothing": 4, "random": 4, "closed-book": 0, "gold": 4}
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    ems = {name: arm["em"]["value"] for name, arm in result["arms"].items()}
    assert ems == {"retriever": 1.0, "nothing": 0.25, "random": 0.25, "closed book": 0.25, "gold": 1.0}
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    assert figures == {
        "exact match that searching adds, over finding nothing": 0.75,
        "exact match that searching adds, over closed book": 0.75,
        "exact match that each search adds": 0.75,
        "right answers that need search": 0.75,
        "wasted searches": 0.25,  # Peru's
        "wrong passages believed": 0.75,
        "exact match that better passages would add": 0.0,
    }
    assert "right answers that need search" in capsys.readouterr().out


def test_an_exam_continues_where_it_was_cut_off(
    tmp_path: Path, tokenizer_folder: Path, servers: tuple[FakeEngine, FakeRetriever]
) -> None:
    command = arguments(tmp_path, tokenizer_folder, servers, data_with_gold(tmp_path / "test.jsonl"))
    assert exam.main(command) == 0
    engine, retriever = servers
    asked, searched = len(engine.requests), len(retriever.queries)
    path = tmp_path / "out" / "random" / "trajectories.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:3]) + '{"cut')
    results = (tmp_path / "out" / "results.json").read_text()
    assert exam.main(command) == 0
    assert len(engine.requests) - asked == 2  # one question, two turns
    assert len(retriever.queries) == searched  # the random passages are those of before
    assert (tmp_path / "out" / "results.json").read_text() == results


def test_the_gold_arm_is_left_out_where_gold_passages_are_not_known(
    tmp_path: Path,
    tokenizer_folder: Path,
    servers: tuple[FakeEngine, FakeRetriever],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = data_with_gold(tmp_path / "test.jsonl", without="Ghana")
    assert exam.main(arguments(tmp_path, tokenizer_folder, servers, data)) == 0
    assert "The gold arm is left out" in capsys.readouterr().out
    assert "gold" not in json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert not (tmp_path / "out" / "gold").exists()


def test_a_retriever_that_finds_nothing_is_reported(
    tmp_path: Path,
    tokenizer_folder: Path,
    servers: tuple[FakeEngine, FakeRetriever],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("test_exam.FACTS", [])
    data = write_data(tmp_path / "test.jsonl")
    assert exam.main(arguments(tmp_path, tokenizer_folder, servers, data)) == 1
    assert "error: The retriever finds nothing for any question" in capsys.readouterr().err


@pytest.mark.parametrize("search", ["none", "google"])
def test_an_exam_needs_a_retriever(capsys: pytest.CaptureFixture[str], search: str) -> None:
    with pytest.raises(SystemExit):
        exam.main(["--model", "m", "--engine", "demo", "--data", "d", "--output", "o", "--search", search])
    assert "--search must be local:URL" in capsys.readouterr().err


# --- the parts ----------------------------------------------------------------------------------------------------


def question(name: str, *golds: str) -> Question:
    return Question(name, "nq", f"Who is {name}?", golds, {})


def test_random_passages_are_the_same_each_time_and_never_hold_the_answer() -> None:
    found = {"a": ["own passage"], "b": ["x\nAnn was here"], "c": [f"p\nnumber {n}" for n in range(50)]}
    find = exam.random_passages(found, seed=0)
    asked = question("a", "Ann")
    first, other = find(asked, "one query", 3), find(asked, "another query", 3)
    assert first == exam.random_passages(found, seed=0)(asked, "one query", 3) != other
    everything = find(asked, "one query", 100)
    assert len(everything) == 50 and not {"own passage", "x\nAnn was here"} & set(everything)
    assert exam.random_passages(found, seed=1)(asked, "one query", 3) != first


def test_gold_passages_that_are_not_texts_are_reported() -> None:
    with pytest.raises(ValueError, match=r"gold_passages of the question 'Who is a[?]' is not a list of texts"):
        exam.gold_passages(Question("a", "nq", "Who is a?", ("x",), {"metadata": {"gold_passages": [{"title": "t"}]}}))


def rollout(*searches: list[str], answer: str | None = "x") -> RolloutRecord:
    results = [SearchResult("q", [Passage("t", text) for text in texts]) for texts in searches]
    turns = [RecordedTurn("search", queries=["q"], results=[result]) for result in results]
    record = RolloutRecord(StopReason.ANSWERED, turns=[*turns, RecordedTurn("answer", answer=answer)])
    record.spans = [Span("turn", 1)]
    return record


def test_a_search_that_brings_nothing_new_is_a_repeat() -> None:
    assert repeated_searches(rollout(["a", "b"], ["b", "a"], ["b", "c"], [])) == 2
    assert repeated_searches(rollout()) == 0


def line(name: str, em: float, answer: str | None = "x", *searches: list[str]) -> dict[str, Any]:
    scores = {"em": em, "searches": float(len(searches)), "gold_found": 0.0, "answer": answer}
    return {"id": name, "scores": scores, "metadata": {"search_r1": rollout(*searches, answer=answer).as_json()}}


def test_only_a_wrong_answer_that_was_read_is_believed() -> None:
    assert believes(line("q", 0.0, "Mount Kenya", ["He saw mount kenya."]))
    assert not believes(line("q", 1.0, "Kenya", ["Kenya"]))
    assert not believes(line("q", 0.0, "Kenya", ["Kenyan"]))
    assert not believes(line("q", 0.0, None, ["Kenya"]))


def test_figures_by_hand() -> None:
    arms = {
        # q1 needs search, q2 does not, q3 stays wrong, q4 is right without a search.
        "retriever": [
            line("q1", 1, "x", ["a"]),
            line("q2", 1, "x", ["a"], ["b"]),
            line("q3", 0, "x", ["a"], ["a"]),
            line("q4", 1),
        ],
        "nothing": [line("q1", 0), line("q2", 1), line("q3", 0), line("q4", 0)],
        "random": [line("q1", 0, "x", ["x"]), line("q2", 1, "x", ["x"]), line("q3", 0, "x", ["y"]), line("q4", 1)],
        "closed book": [line("q1", 0), line("q2", 0), line("q3", 0), line("q4", 1)],
        "gold": [line("q1", 1), line("q2", 1), line("q3", 1), line("q4", 1), line("q5", 1)],
    }
    result = examine(arms)
    values = {name: (figure.value, figure.of) for name, figure in result.figures.items()}
    assert values == {
        "exact match that searching adds, over finding nothing": (0.5, 4),  # (3 - 1) / 4
        "exact match that searching adds, over closed book": (0.5, 4),
        "exact match that each search adds": (2 / 5, 5),
        "right answers that need search": (1 / 3, 3),
        "wasted searches": (3 / 5, 5),  # both of q2, the second of q3
        "wrong passages believed": (1 / 3, 3),
        "exact match that better passages would add": (0.25, 4),
    }
    assert result.arms["gold"]["questions"] == 4  # q5 was asked in one arm only
    assert result.arms["nothing"]["against"].value == -0.5


def test_a_model_that_never_searches_has_no_figures_of_searches() -> None:
    arms = {name: [line("q1", 0), line("q2", 0)] for name in ("retriever", "nothing", "random", "closed book")}
    figures = examine(arms).figures
    assert figures["wasted searches"] == Figure(None, None, None, 0)
    assert figures["right answers that need search"].value is None
    assert figures["exact match that searching adds, over finding nothing"].value == 0
    assert "exact match that better passages would add" not in figures
