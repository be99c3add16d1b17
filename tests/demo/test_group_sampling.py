"""Groups of a step: which are trained, which are dropped, which go on in the next step; none is lost."""

import asyncio
import random
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from slime.rollout.filter_hub.base_types import DynamicFilterOutput

import generate_with_search
from demo import group_sampling
from demo.group_sampling import GroupSampling


class Rollouts:
    """Stands in for the rollouts: each takes a few turns of the event loop, unless it is aborted before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = SimpleNamespace(aborted=False, tokenizer=None)
        self.asked = 0
        self.turns: dict[int, int] = {}  # of each group
        self.choose = random.Random(0)
        monkeypatch.setattr("slime.rollout.sglang_rollout.GenerateState", lambda args: self.state)
        monkeypatch.setattr(group_sampling, "group_of", self.group_of)
        monkeypatch.setattr(group_sampling, "roll_out_group", self.roll_out)
        monkeypatch.setattr(generate_with_search, "keep_group", self.keep)
        monkeypatch.setattr(generate_with_search, "process_all_groups", lambda args, groups, source: None)

    def sampling(self, at_a_time: int) -> GroupSampling:
        return GroupSampling(Namespace(), self.question, lambda: None, samples=2, at_a_time=at_a_time)

    def question(self) -> Any:
        self.asked += 1
        return self.asked

    def group_of(self, args: Any, question: int, samples: int, number: int) -> list[Any]:
        assert number == question - 1
        self.turns[question] = 0
        return [SimpleNamespace(question=question, rewarded=0) for _ in range(samples)]

    async def roll_out(self, args: Any, group: list[Any]) -> list[Any]:
        for _ in range(self.choose.randrange(1, 9)):
            if self.state.aborted:
                return group
            self.turns[group[0].question] += 1
            await asyncio.sleep(0)
        for sample in group:
            sample.rewarded += 1
        return group

    def keep(self, args: Any, group: list[Any]) -> DynamicFilterOutput:
        return DynamicFilterOutput(keep=group[0].question % 3 == 0)


async def test_each_group_is_trained_or_dropped_once_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = Rollouts(monkeypatch)
    sampling = rollouts.sampling(12)
    trained, dropped = [], []
    for step in range(50):
        kept, useless = await sampling.step(8, f"step {step}")
        assert len(kept) == 8
        trained += [group[0].question for group in kept]
        dropped += [group[0].question for group in useless]
    assert len(set(trained)) == len(trained) == 400 and all(question % 3 == 0 for question in trained)
    assert len(set(dropped)) == len(dropped) and all(question % 3 for question in dropped)
    assert rollouts.asked - len(trained) - len(dropped) <= 12 + 8  # these wait for the next step


async def test_an_unfinished_group_goes_on_in_the_next_step_before_new_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts = Rollouts(monkeypatch)
    sampling = rollouts.sampling(12)
    await sampling.step(1, "step 1")
    begun = {question for question, turns in rollouts.turns.items() if turns}
    asked = rollouts.asked
    kept, dropped = await sampling.step(1, "step 2")
    assert {group[0].question for group in kept + dropped} & begun
    assert rollouts.asked - asked <= len(kept) + len(dropped)
    assert not rollouts.state.aborted
