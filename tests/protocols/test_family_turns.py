"""Every model that people train, real tokenizer or template: what is appended is what the template would have written.

Prompt, what the engine sampled and what is appended are the template's own rendering of the conversation wherever the
template only appends. Where it rewrites earlier turns (REWRITTEN), what is appended still is what the rendering
ends in, and the model's ids stay as they were sampled. Templates and tokenizers: see `real_tokenizers`.
"""

import json
import random
from collections import Counter
from typing import Any

import pytest
from real_tokenizers import MODELS, model_tokenizer, small_tokenizer

from search_rollout.protocols.chat_template import SENTINEL, decode, encode, next_turn_ids, render_prompt, strip_end
from search_rollout.protocols.prompts import SEARCH_TOOL, xml_messages

pytestmark = pytest.mark.model

# Which turns a template rewrites once something follows: those with a thought or without one ("plain"), before a tool
# message or a user's. All others are only appended to.
REWRITTEN = {
    "Qwen3": {"thought user"},
    "Qwen3-Thinking-2507": {"plain tool", "plain user", "thought user"},  # the prompt opens a thought
    "QwQ": {"plain tool", "thought tool", "plain user", "thought user"},
    "Qwen3.5": {"plain tool", "plain user", "thought user"},
    "Llama 3.1": {"thought tool"},  # what stands before a call is dropped
    "Llama 4": {"thought tool"},
    "Mistral-7B-v0.3": {"thought tool"},
    "Mistral-Nemo": {"thought tool"},
    "Mistral-Small-3.2": {"thought tool"},
    "DeepSeek-V3": {"thought tool"},
    "DeepSeek-V3.1": {"thought user"},
    "GLM-4.5": {"thought tool", "thought user"},
    "GLM-4.7": {"plain tool", "thought tool", "plain user", "thought user"},
    "Typhoon-2.1 (Gemma 3)": {"thought tool", "thought user"},
}
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (model.tokenizer == "gemma3")) for name, model in MODELS.items()
]  # Gemma's tokenizer takes 10 seconds to load
MOVES_SYSTEM = ("Mistral-7B-v0.3", "Mistral-Nemo")  # system message and tools, always to the last question
QUESTION = [{"role": "system", "content": "Search."}, {"role": "user", "content": "What is the capital of Kenya?"}]
WORDS = (
    "Kenya",
    "Nairobi.",
    "(a)",
    '"q"',
    "漢字",
    "Москва",
    "😀",
    "1998",
    "<b>",
    "{}",
    "x = 1;",
    "it's",
    "\n",
    "  ",
    "\\n",
)


def text(choose: random.Random) -> str:
    return "It" + "".join(choose.choice(["", " "]) + choose.choice(WORDS) for _ in range(6)) + "."


def whole(tokenizer: Any, messages: list[dict[str, Any]], tools: bool) -> str:
    return render_prompt(tokenizer, messages, [SEARCH_TOOL] if tools else [])


def assistant_turn(name: str, choose: random.Random, call: bool, thought: str) -> dict[str, Any]:
    """A turn of the model as a template takes it, with a call or with words."""
    if not call:
        return {"role": "assistant", "content": thought + text(choose)}
    arguments: Any = {"queries": [text(choose)]}
    quoted = name == "DeepSeek-V3"  # whose template wants JSON, and no content beside it
    function = {"name": "search", "arguments": json.dumps(arguments) if quoted else arguments}
    calls = [{"id": "call00000", "type": "function", "function": function}]
    calls *= 1 + quoted  # and which writes no end of the turn behind a single call
    return {"role": "assistant", "content": None if quoted else thought, "tool_calls": calls}


@pytest.mark.parametrize("name", NAMES)
def test_the_appended_text_equals_the_templates_own(name):
    tokenizer, choose = model_tokenizer(name), random.Random(name)
    tally: Counter[tuple[str, str, bool]] = Counter()
    for _ in range(40):
        calls = MODELS[name].family != "none" and choose.random() < 0.6
        thought = choose.choice(["", "<think>\nI look it up.\n</think>\n\n"])
        said = assistant_turn(name, choose, calls, thought)
        answers: list[dict[str, Any]] = [{"role": "user", "content": text(choose)}]
        if calls:
            answers = [{"role": "tool", "tool_call_id": "call00000", "content": text(choose)}]
        question, tools = (
            (QUESTION[1:], False) if name in MOVES_SYSTEM else (QUESTION, calls and name != "Mistral-Small-3.2")
        )
        before, after = whole(tokenizer, question, tools), whole(tokenizer, [*question, said, *answers], tools)
        added = next_turn_ids(tokenizer, answers, None)
        assert after.endswith(decode(tokenizer, added))
        assert encode(tokenizer, after)[-len(added) :] == added
        ends = added[0] if added[0] in tokenizer.all_special_ids else None
        assert ends is None or next_turn_ids(tokenizer, answers, ends) == added[1:]  # which the engine sampled

        opened = before.rstrip().endswith("<think>")
        begun = (thought.removeprefix("<think>\n") if opened else thought).strip()
        turn = after.removeprefix(before).lstrip()
        appends = after.startswith(before) and turn.startswith(begun) and opened <= bool(thought)
        tally["thought" if thought else "plain", answers[0]["role"], appends] += 1
        if appends:
            said_ids = encode(tokenizer, after.removeprefix(before).removesuffix(decode(tokenizer, added)))
            assert encode(tokenizer, before) + said_ids + added == encode(tokenizer, after)
    kinds = {(thought, role) for thought, role, _ in tally}
    assert len(kinds) == (2 if MODELS[name].family == "none" else 4)
    assert {" ".join(kind) for kind in kinds if tally[*kind, False]} == REWRITTEN.get(name, set()), tally
    assert not any(tally[*kind, True] and tally[*kind, False] for kind in kinds)


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_ends_once_whatever_end_mark_the_engine_sampled(name):
    tokenizer = model_tokenizer(name)
    answer = [{"role": "user", "content": "again"}]
    added = next_turn_ids(tokenizer, answer, None)
    bare = next_turn_ids(tokenizer, answer, tokenizer.convert_tokens_to_ids("a"))
    assert added == bare  # a stop string or the length ended the turn: the template's own end is there
    if MODELS[name].family == "glm":  # the header of the next message ends a turn
        assert tokenizer.decode(added[:1]) == "<|user|>"
        return
    end = tokenizer.decode(added[:1])
    assert strip_end(tokenizer, f"Nairobi{end}") == "Nairobi"
    for other in ("<|endoftext|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "</s>", "<｜end▁of▁sentence｜>", "<eos>"):
        number = tokenizer.get_vocab().get(other)
        if number is not None and number in tokenizer.added_tokens_decoder:
            assert next_turn_ids(tokenizer, answer, number) == added[1:], other
    assert next_turn_ids(tokenizer, answer, tokenizer.eos_token_id) == added[1:]


@pytest.mark.parametrize("name", NAMES)
def test_a_message_that_quotes_what_we_look_for_changes_nothing(name):
    tokenizer = model_tokenizer(name)
    role = "tool" if MODELS[name].family != "none" else "user"

    def appended(content: str) -> str:
        return decode(tokenizer, next_turn_ids(tokenizer, [{"role": role, "content": content}], None))

    assert appended(f"It {SENTINEL} is.") == appended("It MARK is.").replace("MARK", SENTINEL)


# How a prompt and every later turn begin in XML mode, by enable_thinking: not given, true, false. All others: "free".
THINKING = {
    "Qwen3": ("free", "free", "closed"),
    "Qwen3-Thinking-2507": ("open", "open", "open"),
    "QwQ": ("closed", "open", "closed"),
    "Qwen3.5": ("open", "open", "closed"),
    "DeepSeek-V3.1": ("closed", "open", "closed"),
    "GLM-4.5": ("free", "free", "closed"),
    "GLM-4.7": ("open", "open", "closed"),
    "Typhoon-2.1 (Gemma 3)": ("free", "open", "free"),
}


@pytest.mark.parametrize("name", MODELS)
def test_enable_thinking_holds_for_the_prompt_and_for_every_later_turn(name):
    tokenizer, again = small_tokenizer(name), [{"role": "user", "content": "again"}]
    question = xml_messages("Who wrote Hamlet?")[1 if name in MOVES_SYSTEM else 0 :]
    for kwargs, expected in zip(
        ({}, {"enable_thinking": True}, {"enable_thinking": False}), THINKING.get(name, ("free",) * 3), strict=True
    ):
        prompt = render_prompt(tokenizer, question, **kwargs)
        added = decode(tokenizer, next_turn_ids(tokenizer, again, None, **kwargs))
        said = {"role": "assistant", "content": "It is."}
        assert render_prompt(tokenizer, [*question, said, *again], **kwargs).endswith(added)
        for text in (prompt, added):
            ends = {"<think>": "open", "</think>": "closed"}
            assert next((kind for tag, kind in ends.items() if text.rstrip().endswith(tag)), "free") == expected
