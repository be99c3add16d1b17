"""Prompts rendered by a chat template, turns appended without rendering old ones again, and ids as text."""

from collections.abc import Sequence
from typing import Any

_SENTINEL = "\x02assistant-turn\x03"


def render_prompt(tokenizer: Any, messages: Sequence[dict], **template_kwargs: Any) -> str:
    """The messages as the text of a prompt, up to where the model begins to write."""
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **template_kwargs)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens and spaces as they are."""
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
    )


def next_turn_ids(tokenizer: Any, content: str, last_id: int, **template_kwargs: Any) -> list[int]:
    """Ids of a user message that follows an assistant turn which ended in `last_id`, generation prompt included.

    One render of [user, assistant, the message] is cut behind the assistant's content; the end-of-turn id at its
    head is dropped, since the engine sampled it already. (The difference of two renders would not do: some templates
    write a last assistant turn in another way than an earlier one.)
    """
    messages = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": _SENTINEL},
        {"role": "user", "content": content},
    ]
    _, found, text = render_prompt(tokenizer, messages, **template_kwargs).rpartition(_SENTINEL)
    if not found:
        raise ValueError("The chat template does not write an assistant's content as it is; turns cannot be appended.")
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[1:] if ids[:1] == [last_id] else ids
