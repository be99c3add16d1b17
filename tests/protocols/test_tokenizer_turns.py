"""Real tokenizers and templates: turns appended one by one are what a fresh render of the whole conversation holds.

For random conversations with Qwen2.5, Qwen3 and SmolLM2. Where the template only ever appends, all text is that of the
fresh render, and all ids too if the model split its words as the tokenizer would. Where it rewrites what the model said
(Qwen3 drops earlier thoughts, Qwen2.5 spaces the JSON of calls in its own way), the model's ids stay as they were
sampled, and what the environment added still is what the fresh render holds there.
"""

import json
import random
import unicodedata
from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
from real_tokenizers import NAMES, real_tokenizer

from search_rollout.engine.sglang_reply import Reply
from search_rollout.protocols.base import Message
from search_rollout.protocols.chat_template import decode, encode, next_turn_ids, render_prompt
from search_rollout.protocols.observation import Neutralise, neutraliser, special_strings
from search_rollout.protocols.prompts import SEARCH_TOOL
from search_rollout.protocols.tool_formats import tool_format
from search_rollout.protocols.tools import ToolProtocol
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import Trajectory

pytestmark = pytest.mark.model

END = "<|im_end|>"
composed = partial(unicodedata.normalize, "NFC")  # as Qwen's tokenizers read

EACH_TURNS = 350  # of a tokenizer, about 1,000 in all
MANY_TURNS = 3_500

WORDS = (
    "capital", "of", "Kenya", "Nairobi", "Who", "wrote", "1998", "3.14", "(a)", "it's", "don't", "a/b", "C++", "x = 1;",
    "naïve", "漢字", "東京", "Москва", "مرحبا", "😀", "👩\u200d👧", "é", "ﬁ", "½", "<b>", "</b>", "<", ">", "{", "}",
    "[1]", "\\n", '"q"', "''", "`code`", "```", "|", "<|", "|>", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "…", "—",
)  # fmt: skip
MODEL_WORDS = (*WORDS, "\x00", "\u200b", "\ufffd", "</tool_response>", "<tool_response>", "<|im_sep|>", "assistant\n")
OTHERS_WORDS = (*WORDS, "e\u0301", "\u1112\u1161\u11ab", "\u212b")  # which Qwen's tokenizers compose


def words(choose: random.Random, pool: tuple[str, ...] = WORDS, most: int = 8) -> str:
    """Some text that begins with a word."""
    return "It" + "".join(choose.choice(["", " "]) + choose.choice(pool) for _ in range(choose.randint(0, most)))


# --- what the model says ------------------------------------------------------------------------------------------


class Spoken(NamedTuple):
    """A turn of the model: its text, and the same as OpenAI's content and calls."""

    text: str
    content: str
    calls: list[dict[str, Any]]

    def message(self, structured: bool) -> dict[str, Any]:
        """For a fresh render: with its calls as calls, or as one text."""
        if not (structured and self.calls):
            return {"role": "assistant", "content": self.text}
        calls = [{"type": "function", "function": one} for one in self.calls]
        return {"role": "assistant", "content": self.content, "tool_calls": calls}


def spoken(choose: random.Random, tidy: bool) -> Spoken:
    """A turn as a template would write it if `tidy`, else nearly so."""
    thoughts = ["", "<think>\n{}\n</think>\n\n", "<think>{}</think>\n", "<think>{}</think>", "<think>\n{}"]
    thought = choose.choice(thoughts[: 2 if tidy else 5]).format(words(choose, MODEL_WORDS).strip())
    content = thought + (words(choose, MODEL_WORDS) if choose.random() < 0.5 else "")
    calls = [
        {"name": "search", "arguments": {"queries": [words(choose) for _ in range(choose.randint(1, 2))]}}
        for _ in range(choose.choice([1, 1, 1, 2, 3, 0]))
    ]
    if not content and not calls:
        content = words(choose)
    spacing = {} if tidy else choose.choice([{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": True}])
    written = [json.dumps(one, **{"ensure_ascii": False, **spacing}) for one in calls]
    parts = [content] * bool(content) + [f"<tool_call>\n{one}\n</tool_call>" for one in written]
    text = ("\n" if tidy else choose.choice(["\n", "", "\n\n"])).join(parts)
    return Spoken(text, content, calls)


@cache
def vocabulary(name: str) -> dict[str, int]:
    return real_tokenizer(name).get_vocab()


def sampled(name: str, text: str, choose: random.Random, breaks: float) -> list[int]:
    """Ids of a text; with `breaks`, cut in places where no tokenizer would, down to single bytes of a letter."""
    tokenizer, vocab = real_tokenizer(name), vocabulary(name)
    if not breaks:
        return encode(tokenizer, text)
    middle = choose.randint(0, len(text))
    ids: list[int] = []
    for token in encode(tokenizer, text[:middle]) + encode(tokenizer, text[middle:]):
        piece = tokenizer.convert_ids_to_tokens(token)
        broken = choose.random() < breaks and all(symbol in vocab for symbol in piece)
        ids += [vocab[symbol] for symbol in piece] if broken else [token]
    return ids


# --- what answers it ----------------------------------------------------------------------------------------------


@cache
def neutralise_of(name: str) -> Neutralise:
    return neutraliser(special_strings(real_tokenizer(name)))


@cache
def hostile(name: str) -> tuple[str, ...]:
    """Words of documents: anything, this tokenizer's special tokens and all tags too."""
    return (
        *MODEL_WORDS,
        *OTHERS_WORDS,
        *special_strings(real_tokenizer(name)),
        *(f"<{mark}{tag}>" for tag in ("think", "tool_call", "tool_response", "answer") for mark in ("", "/")),
    )


def answered(
    name: str, protocol: ToolProtocol, turn: str, last_id: int, kwargs: dict, choose: random.Random
) -> Message:
    """What the environment says to a turn: tool messages, a correction, or the next question."""
    action = protocol.parse(turn, think_opened=False, ended=True)
    if action.kind == "invalid":
        return protocol.correct(last_id, True)
    if action.kind == "search":
        results = [
            SearchResult(query, [Passage("T", words(choose, hostile(name), 12)) for _ in range(choose.randint(0, 2))])
            for query in action.queries
        ]
        return protocol.observe(action, results, last_id)
    message = {"role": "user", "content": words(choose, OTHERS_WORDS)}
    ids = next_turn_ids(real_tokenizer(name), [message], last_id, **kwargs)
    return Message(ids, decode(real_tokenizer(name), ids), "observation", (message,))


# --- a conversation, by our way and by the template's -------------------------------------------------------------


def check_conversation(name: str, choose: random.Random, tally: Counter) -> None:
    """A random conversation of some turns; raises AssertionError at the first difference."""
    tokenizer = real_tokenizer(name)
    kwargs = choose.choice([{}, {}, {"enable_thinking": False}])
    tidy, structured, breaks = choose.random() < 0.5, choose.random() < 0.5, choose.choice([0, 0, 0.3])
    messages: list[dict[str, Any]] = [{"role": "user", "content": words(choose, OTHERS_WORDS)}]
    if choose.random() < 0.3:
        messages.insert(0, {"role": "system", "content": words(choose, OTHERS_WORDS)})
    protocol = ToolProtocol(
        tokenizer,
        neutralise_of(name),
        choose.choice([64, 500]),
        kwargs,
        tools=[SEARCH_TOOL],
        form=tool_format(tokenizer),
        max_calls=8,
    )

    def fresh() -> str:
        return tokenizer.apply_chat_template(
            messages, tools=[SEARCH_TOOL], tokenize=False, add_generation_prompt=True, **kwargs
        )

    before = fresh()
    assert render_prompt(tokenizer, messages, [SEARCH_TOOL], **kwargs) == before
    trajectory = Trajectory(10**6, False, encode(tokenizer, before))
    only_appends, said = True, []
    for _ in range(choose.randint(1, 4)):
        turn, ended = spoken(choose, tidy), choose.random() < 0.85  # else a stop string of the caller's ended it
        ids = sampled(name, turn.text, choose, breaks) + [tokenizer.eos_token_id] * ended
        text = decode(tokenizer, ids)
        assert text == turn.text + END * ended
        trajectory.append_model(Reply(ids, None, "stop"), text)
        message = answered(name, protocol, text, ids[-1], kwargs, choose)
        trajectory.append_env(message)
        said += [ids, message.ids]
        messages += [turn.message(structured), *message.messages]

        whole = fresh()
        behind = END + END.join(whole.rsplit(END, 2)[1:])  # from where the model's turn ends
        assert message.ids == encode(tokenizer, behind)[ended:]
        assert message.text == decode(tokenizer, message.ids)
        assert composed(message.text) == composed(behind[len(END) * ended :])
        only_appends = only_appends and whole.startswith(before + turn.text + END)
        if only_appends:
            assert composed(decode(tokenizer, trajectory.ids)) == composed(whole)
            if not breaks:
                assert trajectory.ids == encode(tokenizer, whole)
        before = whole
        tally["turns"] += 1
        tally["appended" if only_appends else "rewritten"] += 1
        tally["whole"] += only_appends and not breaks
        tally["tools"] += sum(one["role"] == "tool" for one in message.messages)
        tally["users"] += message.messages[0]["role"] == "user"
    assert trajectory.response_ids == [token for ids in said for token in ids]


@pytest.mark.parametrize("turns", [EACH_TURNS, pytest.param(MANY_TURNS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_turns_appended_one_by_one_are_those_of_a_fresh_render(name, turns):
    tally: Counter = Counter()
    seed = turns  # another one for another number, so the longer run is not the shorter one continued
    while tally["turns"] < turns:
        try:
            check_conversation(name, random.Random(seed), tally)
        except AssertionError as error:
            raise AssertionError(f"conversation {seed} of {name}") from error
        seed += 1
    print(
        f"{name}: {tally['turns']} turns, {tally['tools']} tool messages, {tally['appended']} turns appended by the "
        f"template too ({tally['whole']} compared by all ids), {tally['rewritten']} behind a rewriting, 0 mismatches"
    )
    for kind in ("appended", "rewritten", "whole", "tools", "users"):
        assert tally[kind] >= turns / 10, kind  # nothing above holds only for want of cases
