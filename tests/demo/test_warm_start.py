"""The supervised traces: what a model is shown must be what a rollout of a perfect model would have been."""

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import torch
from demo_helpers import plain_log_probs, tiny_model
from fakes import CHATML, FakeGenerateState, FakeRetriever, tiny_tokenizer

from demo.grpo import TrainSample
from demo.models import TOOL_TEMPLATE
from demo.rollouts import sample_of, slime_args
from demo.warm_start import endless, solutions, supervised_step, trace
from demo.world_facts import Hop, Question
from search_rollout.config import load_config
from search_rollout.runtime import Runtime
from search_rollout.samples.bare_text import xml_record

ONE_HOP = Question("q1", "What is the capital of Kenya?", ("Nairobi",), (Hop("capital of Kenya", "p0", "Nairobi"),))
TWO_HOPS = Question(
    "q2",
    "What is the capital of the country where Mombasa lies?",
    ("Nairobi", "the city of Nairobi"),
    (Hop("country of Mombasa", "p1", "Kenya"), Hop("capital of Kenya", "p0", "Nairobi")),
)


Teach = Callable[..., Awaitable[TrainSample]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
async def retriever() -> AsyncIterator[FakeRetriever]:
    async with FakeRetriever() as retriever:
        yield retriever


@pytest.fixture
async def teach(tokenizer: Any, retriever: FakeRetriever) -> AsyncIterator[Teach]:
    """trace() of a question in an API mode."""
    runtimes = []

    async def one(question: Question, mode: str = "generate", port: int | None = None) -> TrainSample:
        port = port or int(retriever.url.rpartition(":")[2])
        args = slime_args(model="none", engine_port=1, retriever_port=port, max_length=896, api_mode=mode)
        tokenizer.chat_template = TOOL_TEMPLATE.read_text() if mode == "chat" else CHATML
        runtimes.append(Runtime("http://127.0.0.1:1", load_config({}, {}, args), FakeGenerateState(tokenizer)))
        return await trace(question, runtimes[-1], args)

    yield one
    for runtime in runtimes:
        await runtime.close()


def parts(tokenizer: Any, sample: TrainSample) -> list[tuple[int, str]]:
    """The response's stretches of equal mask, decoded."""
    response = sample.tokens[len(sample.tokens) - len(sample.loss_mask) :]
    found = itertools.groupby(zip(sample.loss_mask, response, strict=True), key=lambda pair: pair[0])
    return [(mask, tokenizer.decode([token for _, token in pairs])) for mask, pairs in found]


async def test_a_trace_of_two_searches_trains_exactly_what_the_model_writes(
    tokenizer: Any, teach: Teach, retriever: FakeRetriever
) -> None:
    sample = await teach(TWO_HOPS)
    masks, texts = zip(*parts(tokenizer, sample), strict=True)
    assert masks == (1, 0, 1, 0, 1)
    assert texts[0] == "<think>I need the country of Mombasa.</think>\n<search>country of Mombasa</search>"
    assert texts[2] == "<think>It is Kenya. I need the capital of Kenya.</think>\n<search>capital of Kenya</search>"
    assert texts[4] == "<think>It is Nairobi.</think>\n<answer>Nairobi</answer>"
    observation = '\n\n<information>Doc 1(Title: "Kenya capital") The capital of Kenya is Nairobi.</information>\n\n'
    assert texts[1] == texts[3] == observation
    assert retriever.queries == ["country of Mombasa", "capital of Kenya"]


async def test_a_trace_begins_with_the_prompt_of_a_rollout(tokenizer: Any, teach: Teach) -> None:
    sample = await teach(ONE_HOP)
    prompt_ids = sample.tokens[: len(sample.tokens) - len(sample.loss_mask)]
    args = slime_args(model="none", engine_port=1, retriever_port=1, max_length=896)
    assert tokenizer.decode(prompt_ids) == sample_of(args, tokenizer, ONE_HOP).prompt
    assert len(sample.rollout_log_probs) == len(sample.loss_mask)


@pytest.mark.parametrize("question", [ONE_HOP, TWO_HOPS])
async def test_a_trace_earns_the_full_reward(tokenizer: Any, teach: Teach, question: Question) -> None:
    sample = await teach(question)
    response = tokenizer.decode(sample.tokens[len(sample.tokens) - len(sample.loss_mask) :])
    record = xml_record(response)
    assert (record.answer, record.valid_format) == ("Nairobi", True) and "Nairobi" in question.answers


def test_every_second_two_search_solution_stops_after_one_search() -> None:
    shown = list(solutions([TWO_HOPS, ONE_HOP, TWO_HOPS, TWO_HOPS, ONE_HOP]))
    assert [len(question.hops) for question in shown] == [1, 1, 2, 1, 1]
    assert shown[1] == ONE_HOP and shown[2] == TWO_HOPS


async def test_a_trace_that_stops_early_is_valid_and_wrong(tokenizer: Any, teach: Teach) -> None:
    (early,) = solutions([TWO_HOPS])
    sample = await teach(early)
    response = tokenizer.decode(sample.tokens[len(sample.tokens) - len(sample.loss_mask) :])
    record = xml_record(response)
    assert (record.valid_format, record.answer) == (True, "Kenya") and "Kenya" not in TWO_HOPS.answers


async def test_a_failing_retriever_is_an_error_and_no_trace(teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_rollout.search.searcher.PAUSE_S", 0.01)
    with pytest.raises(RuntimeError, match="The retriever failed while traces were made: "):
        await teach(ONE_HOP, port=1)


async def test_a_trace_of_chat_mode_calls_the_tool(tokenizer: Any, teach: Teach, retriever: FakeRetriever) -> None:
    sample = await teach(TWO_HOPS, "chat")
    masks, texts = zip(*parts(tokenizer, sample), strict=True)
    assert masks == (1, 0, 1, 0, 1)
    call = '<tool_call>\n{"name": "search", "arguments": {"queries": ["country of Mombasa"]}}\n</tool_call><|im_end|>'
    assert texts[0] == f"<think>I need the country of Mombasa.</think>\n{call}"
    assert texts[1].startswith('\n<|im_start|>user\n<tool_response>\nDoc 1(Title: "Kenya capital")')
    assert texts[1].endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert texts[4] == "<think>It is Nairobi.</think>\n<answer>Nairobi</answer><|im_end|>"
    assert retriever.queries == ["country of Mombasa", "capital of Kenya"]
    prompt = tokenizer.decode(sample.tokens[: len(sample.tokens) - len(sample.loss_mask)])
    assert '"name": "search"' in prompt and '"queries"' in prompt


def test_the_questions_come_in_random_order_each_once_before_any_comes_again() -> None:
    questions = [Question(str(number), "", (), ()) for number in range(10)]
    stream = endless(questions, random.Random(0))
    rounds = [[next(stream).id for _ in range(10)] for _ in range(3)]
    assert all(sorted(ids) == [str(number) for number in range(10)] for ids in rounds)
    assert len({tuple(ids) for ids in rounds}) == 3
    again = endless(questions, random.Random(0))
    assert [next(again).id for _ in range(10)] == rounds[0]


def test_a_supervised_step_lowers_the_mean_loss_of_the_trained_tokens(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    samples = [  # 2 and 3 trained tokens
        TrainSample([5, 6, 7, 8], [1, 0, 1], [0.0] * 3),
        TrainSample([9, 10, 11, 12, 13, 14], [1, 1, 1], [0.0] * 3),
    ]
    first, second = (plain_log_probs(model, sample.tokens, len(sample.tokens) - 3) for sample in samples)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = supervised_step(model, optimizer, samples, torch.float32)
    assert loss == pytest.approx(-(first[0] + first[2] + sum(second)) / 5, rel=1e-4)
    assert supervised_step(model, optimizer, samples, torch.float32) < loss
