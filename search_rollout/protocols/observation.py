"""Renders retrieved passages as text for the model: only data, limited in size, and always closed.

A document may contain anything: tags of our protocol, a tokenizer's special tokens, control characters, a megabyte.
`neutralise` breaks every such string in the text itself, so any encoder gets plain tokens.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from search_rollout.search.passage import SearchResult

Neutralise = Callable[[str], str]

TAGS = ("think", "search", "information", "answer", "tool_call", "tool_response")  # of both protocols
UNAVAILABLE = "Search is not available at the moment."
NOTHING_FOUND = "No documents were found."

CUT = 0.97  # a little more is cut than the proportion says: to encode once more costs more than a few words
CHARS_PER_TOKEN = 12  # a generous bound: text is cut to it before it is ever encoded

_CONTROL = re.compile(  # and what is invisible: it could hide anything
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    r"\ufff9-\uffff\U000e0000-\U000e007f]"
)


def special_strings(tokenizer: Any) -> frozenset[str]:
    """Every string that this tokenizer turns into a special or added token."""
    return frozenset(filter(None, (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab())))


def neutraliser(special: Iterable[str]) -> Neutralise:
    """A function that breaks the `special` strings and the protocol's tags with a space after their first character.

    `</answer>` becomes `< /answer>`: readable, and neither a tag nor a token. Control characters are removed.
    """
    tags = rf"<(?=\s*/?\s*(?:{'|'.join(TAGS)})\s*>)"
    others = "|".join(
        rf"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in sorted(special) if len(text) > 1 and text.strip()
    )
    pattern = re.compile(f"(?:{tags}|{others})(?! )" if others else f"(?:{tags})(?! )", re.IGNORECASE)
    singles = str.maketrans(dict.fromkeys((text for text in special if len(text) == 1 and text.strip()), " "))

    def neutralise(text: str) -> str:
        return pattern.sub(lambda match: match[0] + " ", _CONTROL.sub("", text).translate(singles))

    return neutralise


def render_result(result: SearchResult, neutralise: Neutralise) -> str:
    """The documents, numbered, in the paper's form. The model never sees the cause of an error."""
    documents = (
        neutralise(f'Doc {number}(Title: "{passage.title}") {passage.text}')
        for number, passage in enumerate(result.passages, start=1)
    )
    return UNAVAILABLE if result.error else "\n".join(documents) or NOTHING_FOUND


def fit(
    bodies: Sequence[str], render: Callable[[Sequence[str]], list[int]], max_tokens: int
) -> tuple[list[int], list[str]]:
    """`render(bodies)`, ids, with the bodies cut at their ends, longest first, until it has at most `max_tokens` ids.

    What `render` puts around the bodies is never cut; if that alone is too long, the bodies end up empty.
    """
    bodies = [body[: CHARS_PER_TOKEN * max_tokens].strip() for body in bodies]
    while len(ids := render(bodies)) > max_tokens and any(bodies):
        chars = sum(map(len, bodies))
        bodies = _cut(bodies, min(int(CUT * chars * max_tokens / len(ids)), chars - 1))
    return ids, bodies


def _cut(bodies: Sequence[str], chars: int) -> list[str]:
    """The bodies with at most `chars` characters in all; the shorter ones stay whole."""
    lengths = sorted(map(len, bodies))
    limit = 0
    for shorter, length in enumerate(lengths):
        limit = (chars - sum(lengths[:shorter])) // (len(lengths) - shorter)
        if length > limit:
            break
    return [body[:limit].rstrip() for body in bodies]
