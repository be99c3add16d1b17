"""`search-r1 chat`: what the terminal shows, turn by turn."""

import io
import re
from pathlib import Path

import pytest
from evaluation_helpers import Geographer, fresh_state, save_tokenizer, serving  # noqa: F401
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer

from evaluation import chat

KENYA = """\
question: What is the capital of Kenya?
<think>I look it up.</think>
<search>capital of Kenya</search>
<information>Doc 1(Title: "Kenya capital") The capital of Kenya is Nairobi.</information>
<think>It says so.</think>
<answer>Nairobi</answer>
answer: Nairobi
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


def arguments(model: Path, engine: FakeEngine, retriever: FakeRetriever, *more: str) -> list[str]:
    places = ["--model", str(model), "--engine", f"http://127.0.0.1:{engine.port}"]
    return [*places, "--search", f"local:{retriever.url}", *more]


def test_one_question_is_shown_turn_by_turn_with_its_answer_last(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Geographer()) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever, "--ask", "What is the capital of Kenya?")) == 0
    assert capsys.readouterr().out == KENYA


def test_questions_come_through_a_pipe(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "What is the capital of Kenya?\n\nWhat is the capital of Peru?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with serving(Geographer()) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(KENYA) and shown.endswith("answer: Lima\n")


def test_without_search_the_model_answers_from_memory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geographer = Geographer(searches=False)
    with serving(geographer) as (engine, retriever):
        flags = ("--search", "none", "--ask", "What is the capital of Kenya?")
        assert chat.main(arguments(model, engine, retriever, *flags)) == 0
        assert retriever.queries == [] and len(engine.requests) == 1
    assert "search" not in geographer.prompts[0]
    assert capsys.readouterr().out.endswith("answer: Nairobi\n")


def test_a_question_without_an_answer_says_why(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: Turn("<think>I look.</think><search>more</search>")) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever, "--ask", "Why?")) == 0
    assert capsys.readouterr().out.endswith("no answer: turns_used\n")


def test_a_failing_engine_is_reported_in_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Geographer(status=400)) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever, "--ask", "What is the capital of Kenya?")) == 1
    first, error = capsys.readouterr().err.splitlines()
    assert first == "loading the tokenizer"
    assert error.startswith("error: http://127.0.0.1:") and "answered 400" in error


def test_nothing_writes_to_the_terminal_but_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = iter(
        (
            Turn("<think>\x1b[2J</think>\n<search>x</search>"),
            Turn("<think>\x07</think>\n<answer>Nairobi\x9b31m</answer>"),
        )
    )
    with serving(lambda _: next(turns)) as (engine, retriever):
        retriever.documents = ['"Kenya"\n\x1b]0;title\x07It is Nairobi.']
        assert chat.main(arguments(model, engine, retriever, "--ask", "What is the capital of Kenya?")) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("answer: Nairobi31m\n") and "It is Nairobi." in shown
    assert not any((ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 for char in shown)


def test_an_interrupt_ends_the_program_without_a_traceback(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.Asker, "ask", interrupted)
    with serving(Geographer()) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever, "--ask", "What is the capital of Kenya?")) == 130
    assert capsys.readouterr().err == "loading the tokenizer\n\ninterrupted\n"


def test_parts_of_a_turn_have_colours_only_where_asked() -> None:
    text = "<think>a</think>\n<search>b</search> c"
    assert chat.paint(text, coloured=False) == text
    assert chat.paint(text, coloured=True) == "\x1b[2m<think>a</think>\x1b[0m\n\x1b[36m<search>b</search>\x1b[0m c"
    assert chat.paint("<think>cut off", coloured=True) == "\x1b[2m<think>cut off\x1b[0m"


def test_a_terminal_has_commands_for_help_and_exit(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["/help", "/hlep me", "What is the capital of Kenya?", "/exit", "never asked"])
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    with serving(Geographer()) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever)) == 0
    shown = capsys.readouterr().out
    assert "end the program, like Ctrl-D" in shown and "/hlep is not a command; /help lists them." in shown
    assert shown.endswith(KENYA) and next(typed) == "never asked"


def reader(request: dict) -> Turn:
    """Searches, then answers with the capital that the document names."""
    text = tiny_tokenizer().decode(request["input_ids"])
    city = re.search(r"</?information>.* is (\w+)\.", text)
    answer = "<think>It says so.</think>\n<answer>{}</answer>"
    return Turn(answer.format(city[1]) if city else "<think>I look it up.</think>\n<search>capital of Kenya</search>")


def test_a_fork_continues_from_a_search_with_another_passage_or_query(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = "What is the capital of Kenya?\n/fork 1 read Kenya | The capital is Mombasa.\n/fork 1 search Kenya, city\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with serving(reader) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever)) == 0
        assert retriever.queries == ["capital of Kenya", "Kenya, city"]
        first = engine.requests[0]["input_ids"]
        assert len({tuple(request["input_ids"][: len(first)]) for request in engine.requests}) == 1
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith(("answer:", "fork"))] == [
        "answer: Nairobi",
        "fork at turn 1",
        "answer: Mombasa",
        "fork at turn 1",
        "answer: Nairobi",
    ]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("/fork 1 search x", "Ask a question first"),
        ("What is the capital of Kenya?\n/fork", "/fork TURN search QUERY, or"),
        ("What is the capital of Kenya?\n/fork 1 read no bar", "/fork TURN search QUERY, or"),
        ("What is the capital of Kenya?\n/fork 2 search x", "Turn 2 made no search"),
        ("What is the capital of Kenya?\n/fork 99 search x", "Turn 99 made no search"),
    ],
)
def test_a_fork_that_is_not_possible_is_reported_in_one_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lines: str, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines + "\n"))
    with serving(reader) as (engine, retriever):
        assert chat.main(arguments(model, engine, retriever)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
