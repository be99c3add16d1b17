"""What the sets of --eval-config call: exact match as the only score, and the closed-book control."""

from typing import Any

import pytest
from chat_helpers import END, call, tool_tokenizer
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import ANSWER, PARAMS, SEARCH, make_sample, plugin, recorded, roll_out

import generate_with_search
from evaluation.questions import closed_book_prompt


async def test_a_valid_wrong_answer_earns_a_reward_in_training_and_no_exact_match(monkeypatch: Any) -> None:
    wrong = ANSWER.replace(">Nairobi<", ">Mombasa<")
    tokenizer = tiny_tokenizer()
    async with plugin(monkeypatch, tokenizer, FakeEngine(tokenizer, [Turn(SEARCH), Turn(wrong)])) as (args, _):
        sample = await roll_out(args, make_sample())
        assert sample.reward == pytest.approx(0.2)
        assert await generate_with_search.exact_match(args, sample) == 0.0
        assert recorded(sample).score["exact_match"] is False  # what the series are made of


async def test_a_right_answer_in_a_wrong_format_is_an_exact_match(monkeypatch: Any) -> None:
    tokenizer = tiny_tokenizer()
    engine = FakeEngine(tokenizer, [Turn("<answer>Nairobi</answer>")])
    async with plugin(monkeypatch, tokenizer, engine) as (args, _):
        sample = await generate_with_search.generate(args, make_sample(), dict(PARAMS), evaluation=True)
        assert await generate_with_search.exact_match(args, [sample, sample]) == [1.0, 1.0]
        assert recorded(sample).valid_format is False


async def test_a_discarded_sample_is_not_an_exact_match(monkeypatch: Any) -> None:
    tokenizer = tiny_tokenizer()
    async with plugin(monkeypatch, tokenizer, FakeEngine(tokenizer, [Turn(status=400, body="no")])) as (args, _):
        sample = await roll_out(args, make_sample())
        assert recorded(sample).discarded and await generate_with_search.exact_match(args, sample) == 0.0


async def test_other_rollouts_are_scored_by_their_text(monkeypatch: Any) -> None:
    tokenizer = tiny_tokenizer()
    async with plugin(monkeypatch, tokenizer, FakeEngine(tokenizer, [])) as (args, _):
        sample = make_sample(response=ANSWER)
        assert await generate_with_search.exact_match(args, sample) == 1.0


# --- closed book ---


@pytest.mark.parametrize("form", ["xml", "text", "chat"])
async def test_the_control_answers_in_one_turn_in_every_mode(monkeypatch: Any, form: str) -> None:
    tokenizer = tool_tokenizer() if form == "chat" else tiny_tokenizer()
    prompt = closed_book_prompt("What is the capital of Kenya?", as_text=form != "chat")
    engine, retriever = FakeEngine(tokenizer, [Turn(ANSWER)]), FakeRetriever()
    mode = "chat" if form == "chat" else "generate"
    async with plugin(monkeypatch, tokenizer, engine, retriever, llm_api_mode=mode) as (args, _):
        sample = make_sample(prompt=prompt)
        sample = await generate_with_search.generate_closed_book(args, sample, dict(PARAMS), evaluation=True)
        assert await generate_with_search.exact_match(args, sample) == 1.0
        assert recorded(sample).valid_format
    asked = tokenizer.decode(engine.requests[0]["input_ids"])
    assert "search" not in asked and "tool" not in asked.lower()


@pytest.mark.parametrize("mode", ["generate", "chat"])
async def test_the_control_runs_no_search_whatever_the_model_writes(monkeypatch: Any, mode: str) -> None:
    tokenizer = tool_tokenizer() if mode == "chat" else tiny_tokenizer()
    turn = SEARCH if mode == "generate" else f"<think>x</think>{call('Kenya')}{END}"
    engine, retriever = FakeEngine(tokenizer, [Turn(turn)]), FakeRetriever()
    async with plugin(monkeypatch, tokenizer, engine, retriever, llm_api_mode=mode) as (args, _):
        sample = make_sample(prompt=closed_book_prompt("Capital of Kenya?", as_text=mode == "generate"))
        sample = await generate_with_search.generate_closed_book(args, sample, dict(PARAMS))
        assert await generate_with_search.exact_match(args, sample) == 0.0
    assert len(engine.requests) == 1 and retriever.requests == 0 and recorded(sample).searches == []


async def test_a_rollout_evaluated_with_the_control_still_searches(monkeypatch: Any) -> None:
    tokenizer = tiny_tokenizer()
    retriever = FakeRetriever()
    engine = FakeEngine(tokenizer, [Turn(ANSWER), Turn(SEARCH), Turn(ANSWER)])
    async with plugin(monkeypatch, tokenizer, engine, retriever) as (args, _):
        await generate_with_search.generate_closed_book(args, make_sample(), dict(PARAMS))
        sample = await roll_out(args, make_sample())
    assert retriever.requests == 1 and len(recorded(sample).searches) == 1
