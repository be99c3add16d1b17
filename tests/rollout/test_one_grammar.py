"""What a rollout acted on is what is recorded, and what is scored: random turns in both modes.

The real loop, protocol and reward; only the engine and the search are scripted. What the rollout did is taken from
outside: the queries that reached the search, the corrections that the model read, and the text where it ended. Beside
it, the whole response is read as bare text, and must say the same.
"""

import argparse
import random
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeGenerateState, slime_args, tiny_tokenizer
from slime.utils.types import Sample

import generate_with_search
from search_rollout.config import load_config
from search_rollout.engine.sglang_reply import Reply
from search_rollout.engine.tracking import Tracking
from search_rollout.protocols.base import FAULTS
from search_rollout.protocols.chat_template import encode
from search_rollout.runtime import Rollout, Runtime
from search_rollout.samples.bare_text import tool_record, xml_record
from search_rollout.samples.fields import write_rollout
from search_rollout.samples.record import RolloutRecord, record_of
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

TURNS = 10_000
END = "<|im_end|>"
OPENED = {"nowhere": (False, False), "in the first turn": (True, False), "in every turn": (True, True)}
PIECES = {
    "generate": [
        *("<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "<information>", "</information>"),
        *("Nairobi", "Kenya", " ", "\n", "a thought", "", "<answer>Nairobi</answer>", "<search>Kenya</search>"),
        *("<think>x</think>", "<answer>Nairobi<answer>", END),
    ],
    "chat": [
        *("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<tool_response>", "Nairobi"),
        *(" ", "\n", "a thought", "", "<answer>Nairobi</answer>", "<think>x</think>", "<answer>Nairobi<answer>", END),
        '<tool_call>{"name": "search", "arguments": {"queries": ["Kenya", "Mombasa"]}}</tool_call>',
        '<tool_call>{"name": "search", "arguments": {"queries": []}}</tool_call>',
        '<tool_call>{"name": "look", "arguments": {}}</tool_call>',
    ],
}
SOUND = {
    "generate": ["<think>x</think>\n<search>Kenya</search>", "<think>y</think>\n<answer>Nairobi</answer>"],
    "chat": [
        '<think>x</think>\n<tool_call>{"name": "search", "arguments": {"queries": ["Kenya"]}}</tool_call>',
        "<think>y</think>\n<answer>Nairobi</answer>",
    ],
}


def template(opened: tuple[bool, bool]) -> str:
    """ChatML that opens <think> for the first turn of the model, or for every one."""
    first, later = ("<think>\n" if one else "" for one in opened)
    return (
        "{% for message in messages %}<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        f"{{% if messages|length > 2 %}}{later}{{% else %}}{first}{{% endif %}}{{% endif %}}"
        "{# <tool_call> #}"
    )


def turns(choose: random.Random, mode: str, opened: tuple[bool, bool], sound: list[bool]) -> Iterator[str]:
    """Turns of one rollout: sound ones, and soup that now and then is one. `sound` grows by whether each is sound."""
    number = 0
    while True:
        begun = opened[0] if number == 0 else opened[1] and mode == "chat"
        if choose.random() < 0.5:
            turn = choose.choice(SOUND[mode])
            sound.append(not begun or choose.random() < 0.8)
            turn = turn.removeprefix("<think>") if begun and sound[-1] else turn
        else:
            turn = "".join(choose.choices(PIECES[mode], k=choose.randint(1, 7))) or " "
            sound.append(False)
        yield turn + (END if mode == "chat" or choose.random() < 0.1 else "")
        number += 1


class Scripted(Tracking):
    """Replies with what the script says."""

    def __init__(self, tokenizer: Any, script: Iterator[str]) -> None:
        self._tokenizer, self._script = tokenizer, script

    async def complete(self, *_: Any) -> Reply:
        ids = encode(self._tokenizer, next(self._script))
        return Reply(ids, [-0.1] * len(ids), "stop", ended_turn=ids[-1] == self._tokenizer.eos_token_id)


class Search:
    """Finds a passage for every query, and remembers the queries."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    async def search(self, query: str) -> SearchResult:
        self.queries.append(query)
        return SearchResult(query, [Passage("Kenya", "It lies in Africa.")])

    async def close(self) -> None:
        pass


async def rolled_out(runtime: Runtime, args: argparse.Namespace, prompt: Any, script: Iterator[str]) -> Any:
    """The rollout, its sample with the reward, and what an onlooker saw."""
    sample = Sample(index=0, prompt=prompt, label={"ground_truth": {"target": ["Nairobi"]}})
    params = {"max_new_tokens": 500, "temperature": 1.0}
    rollout: Rollout = await runtime.begin(args, sample, params, False)
    rollout.tracking = Scripted(runtime.tokenizer, script)
    seen: list[Any] = []
    stop = await generate_with_search.roll_out(runtime, rollout, params, seen.append)
    write_rollout(sample, rollout.trajectory, rollout.record(stop), runtime.decode)
    sample.reward = await generate_with_search.reward_func(args, sample)
    return sample, stop, seen


@pytest.mark.slow
@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("mode", PIECES)
async def test_the_record_and_the_score_use_the_action_that_the_rollout_executed(mode: str, opened: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template(OPENED[opened])
    args = slime_args(llm_api_mode=mode, max_context_length=100_000, tool_call_format="hermes")
    runtime = Runtime(
        "http://127.0.0.1:1",
        load_config(generate_with_search.SEARCH_R1_CONFIGS, {}, args),
        FakeGenerateState(tokenizer),
    )
    await runtime.search.close()
    messages = [{"role": "system", "content": "Search."}, {"role": "user", "content": "Which capital?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = messages if mode == "chat" else rendered
    choose = random.Random(f"{mode} {opened}")
    count, faults, endings = 0, set(), set()
    while count < TURNS:
        runtime.search = search = Search()  # type: ignore[assignment]
        sound: list[bool] = []
        sample, stop, seen = await rolled_out(runtime, args, prompt, turns(choose, mode, OPENED[opened], sound))
        record = record_of(sample)
        assert record is not None
        compare(record, stop, seen, search.queries)
        assert sample.reward == expected_reward(record), sample.response
        assert record.valid_format or not all(sound) or stop is not StopReason.ANSWERED
        compare_with_bare_text(mode, sample, record, OPENED[opened])
        count += record.model_turns
        faults |= {turn.fault for turn in record.turns}
        endings.add((stop, record.answer == "Nairobi", record.valid_format))
    assert faults >= {*FAULTS, None} - ({"empty_query"} if mode == "chat" else set()) - {
        "cut_off"
    }  # all of it occurred
    assert {(StopReason.ANSWERED, True, True), (StopReason.ANSWERED, True, False)} <= endings
    assert any(ended is StopReason.TURNS_USED for ended, _, _ in endings)


def compare(record: RolloutRecord, stop: StopReason, seen: list[Any], queries: list[str]) -> None:
    """The record against what an onlooker saw."""
    assert [span.kind for span in record.spans] == [segment.kind for segment in seen]
    assert [query for turn in record.turns for query in turn.queries if turn.results] == queries
    replies = [segment.kind for segment in seen if segment.kind != "turn"]
    for turn, reply in zip(record.turns, replies, strict=False):
        assert (reply == "correction") == (turn.action == "invalid" or bool(turn.mistakes))
    last = record.turns[-1]
    assert (stop is StopReason.ANSWERED) == (last.action == "answer")
    if last.answer is not None:
        assert last.answer in seen[-1].text and record.answer == last.answer


def expected_reward(record: RolloutRecord) -> float:
    """By the table of the default preset, from the record."""
    if record.answer == "Nairobi":
        return 1.0 if record.valid_format else 0.8
    return 0.2 if record.valid_format else 0.0


def compare_with_bare_text(mode: str, sample: Sample, record: RolloutRecord, opened: tuple[bool, bool]) -> None:
    """A clean rollout reads the same from its text alone; no text is worth more than what was recorded."""
    read = xml_record if mode == "generate" else tool_record
    bare = read(sample.response, think_opened=opened[0])
    if record.valid_format:
        assert (bare.answer, bare.valid_format) == (record.answer, True)
    if bare.valid_format and bare.answer is not None and len(bare.turns) == len(record.turns):
        assert record.valid_format and record.answer == bare.answer
