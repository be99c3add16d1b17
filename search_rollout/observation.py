"""Retrieved passages as the text that the model reads: data only, bounded, and always closed.

A document may hold anything: tags of our protocol, a tokenizer's special tokens, control characters, a megabyte.
`neutralise` breaks every such string in the text itself, so whoever encodes the text gets plain tokens.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from search_rollout.retrieval import Passage
from search_rollout.xml_protocol import TAGS

OPEN, CLOSE = "\n\n<information>", "</information>\n\n"
UNAVAILABLE = "Search is not available at the moment."
NOTHING_FOUND = "No documents were found."

CHARS_PER_TOKEN = 12  # a generous bound: text is cut to it before it is ever encoded

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\uffff]"
)


def special_strings(tokenizer: Any) -> frozenset[str]:
    """Every string that this tokenizer turns into a special or added token."""
    return frozenset(filter(None, (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())))


def neutraliser(special: Iterable[str]) -> Callable[[str], str]:
    """A function that breaks the `special` strings and the protocol's tags by a space behind their first character.

    `</answer>` becomes `< /answer>`: readable, and neither a tag nor a token. Control characters are removed.
    """
    tags = rf"<(?=\s*/?\s*(?:{'|'.join(TAGS)}|tool_call|tool_response)\s*>)"
    others = "|".join(
        rf"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in sorted(special) if len(text) > 1 and text.strip()
    )
    pattern = re.compile(f"(?:{tags}|{others})(?! )" if others else f"(?:{tags})(?! )", re.IGNORECASE)
    singles = str.maketrans(dict.fromkeys((text for text in special if len(text) == 1 and text.strip()), " "))

    def neutralise(text: str) -> str:
        return pattern.sub(lambda match: match[0] + " ", _CONTROL.sub("", text).translate(singles))

    return neutralise


def render_passages(passages: Sequence[Passage], neutralise: Callable[[str], str]) -> str:
    """The documents, numbered, in the paper's form."""
    if not passages:
        return NOTHING_FOUND
    return "\n".join(
        neutralise(f'Doc {number}(Title: "{passage.title}") {passage.text}')
        for number, passage in enumerate(passages, start=1)
    )


def observation_ids(tokenizer: Any, body: str, max_tokens: int) -> tuple[list[int], str]:
    """Ids and text of `<information>body</information>`, at most `max_tokens` ids.

    What does not fit is cut from the body's end, never from the closing tag.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    body = body[: CHARS_PER_TOKEN * max_tokens].strip()
    while len(ids := encode(OPEN + body + CLOSE)) > max_tokens and body:
        size = len(encode(body))
        keep = max(size - (len(ids) - max_tokens), 0)
        body = body[: min(len(body) * keep // max(size, 1), len(body) - 1)].rstrip()
    return ids, OPEN + body + CLOSE
