"""Evaluations against the fakes, which answer from a thread of their own, as other processes would."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from slime.utils.misc import SingletonMeta

from search_rollout.protocols.prompts import PromptMode, prompt_row

WAIT_S = 20.0
CAPITALS = {"Kenya": "Nairobi", "Ghana": "Accra", "Peru": "Lima", "Cuba": "Havana"}
SEARCH = "<think>I look it up.</think>\n<search>capital of {country}</search>"
ANSWER = "<think>It says so.</think>\n<answer>{answer}</answer>"


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tokenizer of another test, and the variables that main() sets undone; for modules that import it."""
    for name in ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, "error"))
    SingletonMeta.clear_all_instances()
    yield
    SingletonMeta.clear_all_instances()


def save_tokenizer(folder: Path) -> Path:
    """The tiny tokenizer as a Hugging Face folder."""
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_data(path: Path, mode: PromptMode = "generate", sources: tuple[str, ...] = ("nq",)) -> Path:
    """Questions about capitals as prepared data, one set after the other."""
    rows = [
        prompt_row(f"What is the capital of {country}?", [capital], source, mode=mode, extra={"index": number})
        for source in sources
        for number, (country, capital) in enumerate(CAPITALS.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Geographer:
    """Searches once, then answers; wrongly where `wrong` names the country. Reads the prompt as any model does."""

    def __init__(self, wrong: tuple[str, ...] = (), *, searches: bool = True, status: int = 200) -> None:
        self.tokenizer = tiny_tokenizer()
        self.wrong = wrong
        self.searches = searches
        self.status = status
        self.prompts: list[str] = []  # of first turns

    def __call__(self, request: dict) -> Turn:
        text = self.tokenizer.decode(request["input_ids"])
        country = next(name for name in CAPITALS if f"the capital of {name}?" in text)
        if self.status != 200:
            return Turn(status=self.status, body={"error": "no"})
        if "</think>\n<" not in text:
            self.prompts.append(text)
            if self.searches:
                return Turn(SEARCH.format(country=country))
        return Turn(ANSWER.format(answer="Atlantis" if country in self.wrong else CAPITALS[country]))


@contextmanager
def serving(script: Callable[[dict], Turn]) -> Iterator[tuple[FakeEngine, FakeRetriever]]:
    """Both fakes, in an event loop of another thread."""
    engine, retriever = FakeEngine(tiny_tokenizer(), script), FakeRetriever()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(WAIT_S)

    try:
        for server in (engine, retriever):
            run(server.__aenter__())
        yield engine, retriever
    finally:
        run(asyncio.sleep(0.02))  # a connection that came just now gets its transport, so that it is closed as well
        for server in (engine, retriever):
            run(server.__aexit__())
        run(asyncio.sleep(0.02))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of trajectories.jsonl."""
    return [json.loads(line) for line in (folder / "trajectories.jsonl").read_text().splitlines()]
