"""`search-r1 replay`: a step that was kept is repeated; what is missing or changed is named."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_helpers import tiny_model
from fakes import tiny_tokenizer
from slime.utils.misc import SingletonMeta

from demo import kept_steps, replay
from demo.engine import Engine
from demo.engine_server import serving
from demo.rollouts import roll_out, slime_args
from demo.train import MAX_LENGTH
from demo.world_facts import Hop, Question

QUESTIONS = [
    Question(f"q{number}", f"Capital of {country}?", (capital,), (Hop("capital", "p0", capital),))
    for number, (country, capital) in enumerate({"Kenya": "Nairobi", "Peru": "Lima"}.items())
]


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short replies, no tokenizer of another test, and what main() sets undone."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr("demo.rollouts.MAX_RESPONSE_LEN", 40)
    SingletonMeta.clear_all_instances()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    SingletonMeta.clear_all_instances()


async def kept(run: Path) -> None:
    """A step of a random model, as the demo keeps it: two questions, three samples each."""
    import generate_with_search

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(run / "tokenizer")
    model = tiny_model(tokenizer)
    with Engine(model, tokenizer, max_length=MAX_LENGTH, slots=32) as engine, serving(engine) as port:
        engine.weight_version = "7"
        args = slime_args(
            model=str(run / "tokenizer"),
            engine_port=port,
            retriever_port=1,
            max_length=MAX_LENGTH,
            seed=5,
            searches=run / kept_steps.SEARCHES,
        )
        order = engine.begin_step()
        groups = await roll_out(args, QUESTIONS, samples=3, evaluation=False, title="step 8")
        await generate_with_search.close()
    facts = {"seed": 5, "samples": 3, "dtype": "bfloat16", "api_mode": "generate", "weight_version": "7"}
    kept_steps.keep(run, 8, model, QUESTIONS, groups, facts | {"order": order.recorded})


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demo.rollouts.MAX_RESPONSE_LEN", 40)
        SingletonMeta.clear_all_instances()
        asyncio.run(kept(run))
    return run


@pytest.fixture
def run(one_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(one_run, tmp_path / "run"))


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_kept_step_is_repeated_bit_by_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(run), "8"]) == 0
    shown = capsys.readouterr()
    tokens = sum(row["response_length"] for row in kept_steps.load(run, 8).trajectories)
    assert shown.out == f"step 8: equal, 6 samples of {tokens:,} tokens\n" and tokens > 100
    assert "their order is free" not in shown.err


def test_other_weights_are_reported_with_the_first_different_token(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tiny_tokenizer(), seed=1).save_pretrained(run / "steps" / "8" / "model")
    edit(run / "steps" / "8" / "step.json", {"order": None})  # nothing to wait for
    assert replay.main([str(run)]) == 1
    assert capsys.readouterr().out.startswith("step 8: question q0, sample 0, turn 1, token 0: ")


def test_changed_conditions_are_reported_with_a_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run / "steps" / "8" / "step.json", {"weight_version": "9", "machine": kept_steps.machine() | {"torch": "1.0"}})
    assert replay.main([str(run)]) == 1
    shown = capsys.readouterr()
    assert "step 8: question q0, sample 0: weight_versions " in shown.out
    assert f"recorded under other conditions: torch was 1.0, is {torch.__version__}" in shown.err


def without(path: str) -> Any:
    return lambda run: shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()


MISSING = [
    (without("steps"), [], "has kept no steps: its demo ran without --keep-steps."),
    (lambda run: None, ["3"], "has kept only the steps 8."),
    (without("searches.sqlite"), [], "searches.sqlite is missing"),
    (without("steps/8/model/config.json"), [], "it has no config.json"),
    (without("steps/8/trajectories.jsonl"), [], "trajectories.jsonl"),
    (without("steps/8/questions.jsonl"), [], "Cannot read the questions in"),
    (lambda run: (run / "steps/8/step.json").write_text("{"), [], "step.json cannot be read"),
    (lambda run: edit(run / "steps/8/step.json", {"colour": 1}), [], "step.json cannot be read"),
]


@pytest.mark.parametrize(("spoil", "steps", "sentence"), MISSING)
def test_a_missing_input_of_a_repetition_is_reported_in_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], spoil: Any, steps: list[str], sentence: str
) -> None:
    spoil(run)
    assert replay.main([str(run), *steps]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_a_step_that_was_not_kept_to_its_end_is_no_step(run: Path) -> None:
    (run / "steps" / "8").rename(run / "steps" / "9.unfinished")
    assert kept_steps.kept_steps(run) == []
