"""Prompts rendered by a chat template, turns appended without rendering old ones again, and ids as text."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

_SENTINEL = "\x02assistant-turn\x03"


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


def next_turn_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], last_id: int | None, **kwargs: Any
) -> list[int]:
    """Ids of the messages that follow an assistant turn which ended in `last_id`, generation prompt included.

    One render of [user, assistant, the messages] is cut behind the assistant's content; the end-of-turn id at its
    head is dropped where it is `last_id`, which the engine sampled already. (The difference of two renders would not
    do: some templates write a last assistant turn in another way than an earlier one.)
    """
    dummies = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _SENTINEL}]
    _, found, text = render_prompt(tokenizer, [*dummies, *messages], **kwargs).rpartition(_SENTINEL)
    if not found:
        raise ValueError("The chat template does not write an assistant's content as it is; turns cannot be appended.")
    ids = encode(tokenizer, text)
    return ids[1:] if ids[:1] == [last_id] else ids
