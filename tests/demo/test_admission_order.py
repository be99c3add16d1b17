"""Steps repeated by the engine: seeds of requests, and the recorded order of their admission."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from demo_helpers import WAIT_S, complete, request, some_ids, tiny_model
from fakes import tiny_tokenizer

from demo import engine as engine_module
from demo.admission_order import AdmissionOrder
from demo.engine import Engine, Request, SamplingParams, sample

MAX_NEW = 12
LONG_S = 120.0  # on a machine that does other work as well


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def engine(tokenizer: Any) -> Iterator[Engine]:
    with Engine(tiny_model(tokenizer), tokenizer, slots=3, max_length=128) as running:  # bfloat16: the least exact
        yield running


def conversations(engine: Engine, jitter: random.Random) -> dict[tuple[int, int], list[Request]]:
    """Six samples of two questions with two turns each, from threads that start and pause at random."""
    done: dict[tuple[int, int], list[Request]] = {}

    def converse(question: int, seed: int) -> None:
        ids, turns = some_ids(20 + 9 * question, seed=question), []
        for turn in range(2):
            time.sleep(jitter.random() * 0.02)
            params = {"temperature": 1.0, "sampling_seed": seed, "max_new_tokens": MAX_NEW - 3 * seed}
            turns.append(engine.submit(request(ids, f"{question}.{seed}.{turn}", **params)).result(LONG_S))
            ids = [*ids, *turns[-1].output_ids, *some_ids(5, seed=50 + turn)]
        done[question, seed] = turns

    threads = [threading.Thread(target=converse, args=(q, s)) for q in range(2) for s in range(3)]
    for thread in jitter.sample(threads, len(threads)):
        thread.start()
    for thread in threads:
        thread.join()
    return done


def outcome(done: dict[tuple[int, int], list[Request]]) -> dict[tuple[int, int], list[Any]]:
    return {name: [(turn.output_ids, turn.log_probs) for turn in turns] for name, turns in sorted(done.items())}


def test_a_recorded_order_repeats_every_bit_whatever_the_timing(engine: Engine) -> None:
    order = engine.begin_step()
    first = outcome(conversations(engine, random.Random(0)))
    recorded = list(order.recorded)
    for seed in range(1, 4):
        repeated = engine.begin_step(recorded)
        assert outcome(conversations(engine, random.Random(seed))) == first
        assert repeated.follows and repeated.recorded == recorded


def test_a_request_that_follows_all_running_ones_is_waited_for_after_they_are_handed_out(engine: Engine) -> None:
    def turns() -> list[Any]:
        first = complete(engine, request(some_ids(9), temperature=1.0, sampling_seed=3))[0]
        second = request([*some_ids(9), *first.output_ids, 5], temperature=1.0, sampling_seed=3)
        return [first.log_probs, complete(engine, second)[0].log_probs]

    order = engine.begin_step()
    recorded = turns()
    repeated = engine.begin_step(list(order.recorded))
    assert turns() == recorded and repeated.follows


def test_without_the_order_the_timing_shows_in_the_log_probabilities(engine: Engine) -> None:
    outcomes = []
    for seed in range(6):
        engine.begin_step()
        outcomes.append(outcome(conversations(engine, random.Random(seed))))
    assert any(one != outcomes[0] for one in outcomes[1:])


def test_a_seed_determines_a_reply_whatever_other_requests_run(engine: Engine) -> None:
    ids = some_ids(10)
    alone = complete(engine, request(ids, temperature=1.0, sampling_seed=7))[0].output_ids
    others = [request(some_ids(10, seed=n), f"o{n}", temperature=1.0) for n in range(2)]
    beside = complete(engine, others[0], request(ids, temperature=1.0, sampling_seed=7), others[1])[1].output_ids
    other_seed = complete(engine, request(ids, temperature=1.0, sampling_seed=8))[0].output_ids
    assert alone == beside != other_seed


def test_seeded_tokens_are_sampled_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    counts = torch.zeros(3)
    for seed in range(3000):
        params = [SamplingParams(sampling_seed=seed)]
        (token,), _ = sample(probabilities.log()[None], params, torch.Generator(), [seed % 40])
        counts[token] += 1
    assert torch.allclose(counts / 3000, probabilities, atol=0.03)  # three standard deviations


def test_a_request_that_the_order_does_not_name_ends_the_wait(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    order = engine.begin_step()
    complete(engine, request(some_ids(10), temperature=1.0, sampling_seed=1))
    monkeypatch.setattr(engine_module, "PATIENCE_S", 0.1)
    engine.begin_step()
    with engine._changed:
        engine._changed.notify_all()  # it waits with the patience of before
    complete(engine, request(some_ids(4)))
    followed = engine.begin_step(order.recorded)
    (reply,) = complete(engine, request(some_ids(11), temperature=1.0, sampling_seed=1))
    assert len(reply.output_ids) == 8 and not followed.follows
    assert "their order is free" in caplog.text


def test_a_busy_engine_begins_no_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    compute = engine._forward

    def slow(*arguments: Any) -> None:
        release.wait(WAIT_S)
        compute(*arguments)

    monkeypatch.setattr(engine, "_forward", slow)
    future = engine.submit(request(some_ids(5)))
    with pytest.raises(RuntimeError, match="A busy engine cannot begin a step"):
        engine.begin_step()
    release.set()
    future.result(WAIT_S)


def test_an_order_lets_in_what_is_due_in_its_order_and_nothing_else() -> None:
    a, b, c = (Request(name, [ord(name)], SamplingParams()) for name in "abc")
    recorded = [[0, b.key, a.key], [2, c.key]]
    order = AdmissionOrder(recorded)
    assert order.due([c, a]) is None
    assert order.due([c, a, b]) == [b, a]
    order.note([b, a])
    assert order.due([c]) == []
    order.note([])
    assert order.due([c]) == [c]
    order.note([c])
    assert order.recorded == recorded
    order.abandon()
    assert order.due([c]) == [c]
