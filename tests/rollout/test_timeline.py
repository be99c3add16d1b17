"""Spans of a rollout in slime's timeline, here a fake one; `tests/contracts/test_slime.py` has the real one."""

import contextlib
import sys
import types
from typing import Any

import pytest
from aiohttp import web
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import ANSWER, SEARCH, make_sample, plugin, recorded, roll_out

from search_rollout import timeline

TOKENIZER = tiny_tokenizer()


class Spans:
    """slime's `trace_utils`: (sample, name, attributes) of each span that has ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[Any, str, dict[str, Any]]] = []

    @contextlib.contextmanager
    def trace_span(self, sample: Any, name: str, *, attrs: dict[str, Any] | None = None) -> Any:
        found = dict(attrs or {})
        yield found
        self.ended.append((sample, name, found))

    @staticmethod
    def build_sglang_meta_trace_attrs(meta: dict[str, Any]) -> dict[str, Any]:
        return {"cached_tokens": meta["cached_tokens"], "finish_reason": meta["finish_reason"]["type"]}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans, module = Spans(), types.ModuleType("slime.observability.trace_utils")
    module.__dict__.update(
        trace_span=spans.trace_span, build_sglang_meta_trace_attrs=spans.build_sglang_meta_trace_attrs
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    timeline._slime_function.cache_clear()
    yield spans
    timeline._slime_function.cache_clear()


async def test_engine_calls_searches_and_the_wait_for_a_slot_are_spans(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(ANSWER)])
    async with plugin(monkeypatch, TOKENIZER, engine) as (args, _):
        sample = await roll_out(args, make_sample())
    assert [(name, attributes) for _, name, attributes in spans.ended] == [
        ("sglang_generate", {"cached_tokens": 0, "finish_reason": "stop"}),
        ("search_slot", {}),
        ("search", {"origin": "backend", "failed": False}),
        ("sglang_generate", {"cached_tokens": 0, "finish_reason": "stop"}),
    ]
    assert all(one is sample for one, _, _ in spans.ended)


async def test_a_failed_search_is_marked(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(ANSWER)])
    retriever = FakeRetriever(documents=[], trouble=lambda _: web.Response(status=400))
    async with plugin(monkeypatch, TOKENIZER, engine, retriever) as (args, _):
        await roll_out(args, make_sample())
    assert ("search", {"origin": "backend", "failed": True}) in [span[1:] for span in spans.ended]


async def test_a_reply_that_slime_cannot_describe_is_harmless(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = sys.modules["slime.observability.trace_utils"]
    monkeypatch.setattr(tracing, "build_sglang_meta_trace_attrs", lambda meta: meta["no such key"])
    async with plugin(monkeypatch, TOKENIZER, FakeEngine(TOKENIZER, [Turn(ANSWER)])) as (args, _):
        sample = await roll_out(args, make_sample())
    assert sample.reward == 1.0
    assert [name for _, name, _ in spans.ended] == ["sglang_generate"]


async def test_without_slimes_timeline_a_rollout_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "slime_function", lambda name: (_ for _ in ()).throw(ImportError(name)))
    timeline._slime_function.cache_clear()
    async with plugin(monkeypatch, TOKENIZER, FakeEngine(TOKENIZER, [Turn(SEARCH), Turn(ANSWER)])) as (args, _):
        sample = await roll_out(args, make_sample())
    timeline._slime_function.cache_clear()
    assert recorded(sample).model_turns == 2 and not hasattr(sample, "trace")
