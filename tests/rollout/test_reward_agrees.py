"""Cases in which a reward read from the text disagreed with the rollout, each as the rollout saw it."""

from typing import Any

import pytest
from chat_helpers import END, call, tool_tokenizer
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from real_tokenizers import model_tokenizer
from rollout_helpers import PARAMS, make_sample, plugin, recorded, roll_out
from slime.utils.types import Sample

from search_rollout.config import ConfigError

LONG = {**PARAMS, "max_new_tokens": 1000}
QUESTION = [{"role": "user", "content": "What is the capital of Kenya?"}]
CALL = f"I look it up.</think>\n{call('capital of Kenya')}{END}"
RIGHT = f"It is known.</think>\n<answer>Nairobi</answer>{END}"
WRONG = f"It is known.</think>\n<answer>Mombasa</answer>{END}"


async def chat(monkeypatch: pytest.MonkeyPatch, *turns: str, tokenizer: Any = None, **settings: Any) -> Sample:
    """A rollout in chat mode over these turns."""
    tokenizer = tokenizer or tool_tokenizer()
    engine = FakeEngine(tokenizer, [Turn(turn) for turn in turns])
    retriever = settings.pop("retriever", None) or FakeRetriever()
    async with plugin(monkeypatch, tokenizer, engine, retriever, llm_api_mode="chat", **settings) as (args, _):
        label = settings.get("label", {"ground_truth": {"target": ["Nairobi"]}})
        return await roll_out(args, make_sample(prompt=QUESTION, label=label), LONG)


def thinking_tokenizer() -> Any:
    """Qwen3's real tokenizer with the template of Qwen3-Thinking-2507, which opens <think> in every turn."""
    return model_tokenizer("Qwen3-Thinking-2507")


@pytest.mark.model
@pytest.mark.parametrize(("turns", "reward"), [((CALL, RIGHT), 1.0), ((CALL, WRONG), 0.2), ((RIGHT,), 1.0)])
async def test_a_template_that_opens_every_thought_does_not_cost_a_searcher_its_format(monkeypatch, turns, reward):
    sample = await chat(monkeypatch, *turns, tokenizer=thinking_tokenizer())
    assert recorded(sample).valid_format and sample.reward == pytest.approx(reward)


@pytest.mark.model
async def test_an_answer_in_a_thought_that_never_closes_is_not_paid(monkeypatch):
    sample = await chat(monkeypatch, *[f"<answer>Nairobi</answer>{END}"] * 4, tokenizer=thinking_tokenizer())
    assert recorded(sample).turns[0].fault == "open_thought" and sample.reward == 0.0


@pytest.mark.parametrize(
    ("gold", "document"), [("Nairobi", "Nothing of the kind."), ("No", ""), ("doc", "About Kenya."), ("1", "About it.")]
)
async def test_only_passages_count_as_retrieved_not_the_text_around_them(monkeypatch, gold, document):
    turns = f"<think>x</think>\n{call('Nairobi', 'No doc 1')}{END}", f"<think>x</think>\n<answer>zebra</answer>{END}"
    retriever = FakeRetriever(documents=[f'"T"\n{document}'] * 2 if document else [])
    label = {"ground_truth": {"target": [gold]}}
    sample = await chat(monkeypatch, *turns, retriever=retriever, retrieval_score=0.1, label=label)
    assert not recorded(sample).score["retrieved_gold"] and sample.reward == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        (f"<think>x</think>\nI call now. {call('Kenya')}{END}", "stray_text"),
        (f"<think>x</think>\n<answer>Nairobi</answer>{call('Kenya')}{END}", "stray_tag"),
        (f"Hello <think>x</think>\n{call('Kenya')}{END}", "stray_text"),
    ],
)
async def test_prose_or_an_answer_next_to_a_call_violates_the_format(monkeypatch, turn, fault):
    sample = await chat(monkeypatch, turn, f"<think>x</think>\n<answer>Nairobi</answer>{END}")
    assert recorded(sample).turns[0].fault == fault and sample.reward == pytest.approx(0.8)


async def test_the_answer_of_a_turn_that_was_acted_on_as_a_search_is_not_paid(monkeypatch):
    turn = f"<think>x</think>\n<answer>Nairobi</answer>{call('Kenya')}{END}"
    sample = await chat(monkeypatch, *[turn] * 4)
    assert recorded(sample).stop.value == "turns_used" and sample.reward == 0.0


# --- discarded samples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "evaluation", "reward"),
    [
        ({"reward_key": "em"}, False, {"em": 0.0}),
        ({"reward_key": "em", "eval_reward_key": "f1"}, True, {"f1": 0.0}),
        ({"reward_key": "em", "eval_reward_key": "f1"}, False, {"em": 0.0}),
        ({"eval_reward_key": "f1"}, False, 0.0),
    ],
)
async def test_a_discarded_sample_has_the_reward_that_slime_reads(monkeypatch, keys, evaluation, reward):
    engine = FakeEngine(tiny_tokenizer(), [Turn(status=400, body="no")])
    async with plugin(monkeypatch, tiny_tokenizer(), engine, custom_rm_path="mine.reward", **keys) as (args, _):
        import generate_with_search

        sample = await generate_with_search.generate(args, make_sample(), dict(PARAMS), evaluation=evaluation)
    assert recorded(sample).discarded and sample.reward == reward


async def test_our_reward_with_a_reward_key_is_refused_before_the_first_rollout(monkeypatch):
    settings = {"custom_rm_path": "generate_with_search.reward_func", "reward_key": "em"}
    async with plugin(monkeypatch, tiny_tokenizer(), FakeEngine(tiny_tokenizer(), []), **settings) as (args, _):
        with pytest.raises(ConfigError, match="--reward-key"):
            await roll_out(args, make_sample())


async def test_a_prompt_longer_than_the_context_does_not_go_to_the_trainer(monkeypatch):
    engine = FakeEngine(tiny_tokenizer(), [])
    async with plugin(monkeypatch, tiny_tokenizer(), engine, max_context_length=2000) as (args, _):
        sample = await roll_out(args, make_sample(prompt="Kenya " * 5000))
    assert recorded(sample).stop.value == "prompt_too_long" and len(sample.tokens) == 2


async def test_args_without_an_engine_address_discard_the_sample(monkeypatch):
    import generate_with_search

    monkeypatch.setenv("SEARCH_BACKEND", "local")

    class Args:
        partial_rollout = False

    sample = await generate_with_search.generate(Args(), make_sample(), {"temperature": 0.3})
    assert recorded(sample).stop.value == "internal_error" and sample.reward == 0.0
