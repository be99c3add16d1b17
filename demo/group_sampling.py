"""The rollouts of a GRPO step, with what slime calls dynamic sampling, over-sampling and partial rollout.

More questions are asked at a time than a step trains. A group whose rewards are all equal is dropped, because it
teaches nothing. As soon as the step has enough groups, the other rollouts are aborted; they go on in the next step,
with new weights, from the token where they stopped.
"""

import argparse
import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from demo.rollouts import Group, group_of, roll_out_group
from demo.world_facts import Question
from evaluation.terminal import Progress


@dataclass
class GroupSampling:
    """Keeps unfinished groups from step to step."""

    args: argparse.Namespace  # slime's
    next_question: Callable[[], Question]
    abort_engine: Callable[[], None]
    samples: int  # per question
    at_a_time: int  # questions
    _numbers: Iterator[int] = field(default_factory=itertools.count, init=False)
    _waiting: deque[Group] = field(default_factory=deque, init=False)

    async def step(self, wanted: int, title: str) -> tuple[list[Group], list[Group]]:
        """The step's groups: those to train, `wanted` of them, and those that were dropped."""
        import generate_with_search

        kept: list[Group] = []
        dropped: list[Group] = []
        running: set[asyncio.Task[Group]] = set()
        with Progress(title, wanted, "groups") as progress:
            while len(kept) < wanted:
                while len(running) < self.at_a_time:
                    running.add(asyncio.create_task(roll_out_group(self.args, self._next_group())))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for group in (task.result() for task in done):
                    if len(kept) == wanted:
                        self._waiting.append(group)
                    elif generate_with_search.keep_group(self.args, group).keep:
                        kept.append(group)
                        progress.update()
                    else:
                        dropped.append(group)
            await self._abort(running)
        generate_with_search.process_all_groups(self.args, [*kept, *dropped], self)
        return kept, dropped

    def _next_group(self) -> Group:
        if self._waiting:
            return self._waiting.popleft()
        return group_of(self.args, self.next_question(), self.samples, next(self._numbers))

    async def _abort(self, running: set[asyncio.Task[Group]]) -> None:
        from slime.rollout.sglang_rollout import GenerateState

        state = GenerateState(self.args)
        state.aborted = True
        self.abort_engine()
        self._waiting.extend(await asyncio.gather(*running))
        state.aborted = False
