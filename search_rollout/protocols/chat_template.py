"""Prompts rendered by a chat template, turns appended without rendering old ones again, and ids as text."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

SENTINEL = "what-the-assistant-said-in-the-turn-before"  # printable: JSON must not escape it


def render_prompt(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), **kwargs: Any
) -> str:
    """The messages as the text of a prompt, up to where the model begins to write; `kwargs` go to the template."""
    return tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tools=[dict(tool) for tool in tools] or None,
        tokenize=False,
        add_generation_prompt=True,
        **kwargs,
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, nothing added."""
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens and spaces as they are."""
    if tokenizer.is_fast:  # the same, without a look at the type of every id
        return tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
    )


@functools.lru_cache(maxsize=8)
def _end_marks(tokenizer: Any) -> tuple[str, ...]:
    """The texts of special tokens, of which a turn may end in some."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple({*tokenizer.all_special_tokens, *added} - {""})


def strip_end(tokenizer: Any, turn: str) -> str:
    """A turn's text without the special tokens at its end."""
    marks = _end_marks(tokenizer)
    while turn.endswith(marks):
        turn = next(turn.removesuffix(mark) for mark in marks if turn.endswith(mark))
    return turn


# The tokens that end a turn in the templates of known families, besides the tokenizer's own end token.
_TURN_ENDS = frozenset(
    "<|im_end|> <|endoftext|> <|eot_id|> <|eom_id|> <|end_of_text|> <|eot|> <|eom|> </s> <end_of_turn> <eos> <turn|> "
    "<｜end▁of▁sentence｜> <|end|> <|return|> <|call|> [e~[".split()
)


@functools.lru_cache(maxsize=8)
def _turn_ends(tokenizer: Any) -> dict[int, str]:
    """The tokens that end a turn, by id."""
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    return {number: text for number, text in added.items() if text in _TURN_ENDS or text == tokenizer.eos_token}


def next_turn_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], last_id: int | None, **kwargs: Any
) -> list[int]:
    """Ids of the messages that follow an assistant turn which ended in `last_id`, generation prompt included.

    The template's own end mark at their head is dropped if the engine sampled one, be it another one. Raises ValueError
    if the template loses what the assistant says, and whatever a template raises.
    """
    ids, ends = encode(tokenizer, _behind_turn(tokenizer, messages, kwargs)), _turn_ends(tokenizer)
    sampled = ids[:1] == [last_id] or (ids[:1] and ids[0] in ends and last_id in ends)
    return ids[1:] if sampled else ids


def check_appending(tokenizer: Any, role: str, **kwargs: Any) -> None:
    """Raises ValueError, with the reason, if messages of this role cannot be appended in the tokenizer's template."""
    if not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template.")
    mark = "a text that occurs nowhere else"
    try:
        text = _behind_turn(tokenizer, [{"role": role, "content": mark}], kwargs)
    except Exception as error:  # templates raise what they like
        raise ValueError(f"The chat template cannot append a {role} message: {error}") from error
    if mark not in text:
        raise ValueError(f"The chat template leaves out the content of a {role} message.")


def _behind_turn(tokenizer: Any, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]) -> str:
    """The template's text after an assistant's words: the end of that turn, the messages, the next header.

    It renders [user, assistant, the messages] once and cuts after the assistant's content. (The difference of two
    renders would be wrong: some templates write the last assistant turn differently than earlier ones.) Some templates
    accept tool messages only after the calls that they answer; then it cuts at the end mark after the last call.
    """
    messages = [
        {**message, "tool_call_id": _call_id(number)} if message["role"] == "tool" else message
        for number, message in enumerate(messages)
    ]
    words = {"role": "assistant", "content": SENTINEL}
    try:
        return _cut(render_prompt(tokenizer, [_ASKED, words, *messages], **kwargs))
    except Exception:
        count = sum(message["role"] == "tool" for message in messages)
        if not count:
            raise
        text = _cut(render_prompt(tokenizer, [_ASKED, _calling(count), *messages], **kwargs))
        ends = [text.find(end) for end in _turn_ends(tokenizer).values() if end in text]
        if not ends:
            raise
        return text[min(ends) :]


_ASKED = {"role": "user", "content": "-"}


def _cut(text: str) -> str:
    """The text after the first sentinel, so that a message may quote the sentinel."""
    _, found, rest = text.partition(SENTINEL)
    if not found:
        raise ValueError("The chat template changes an assistant's content; turns cannot be appended.")
    return rest


def _calling(count: int) -> dict[str, Any]:
    """An assistant message with so many calls, the sentinel in the last of them."""
    calls = [
        {
            "id": _call_id(number),
            "type": "function",
            "function": {"name": "search", "arguments": {"query": SENTINEL if number == count - 1 else "-"}},
        }
        for number in range(count)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _call_id(number: int) -> str:
    """Nine letters and digits, as Mistral's templates demand."""
    return f"call{number:05d}"
