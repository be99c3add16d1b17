"""The text of each id of a tokenizer, or its bytes if they are only part of a character."""

from collections.abc import Iterable, Sequence
from typing import Any

from search_rollout.protocols.chat_template import decode, encode

TokenText = str | list[int]  # a list: bytes of part of a character


class TokenTexts:
    """A table of ids and their texts that grows with the ids it meets."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        # Decoded after another token, because some tokenizers drop spaces at the start of a text.
        self._first = encode(tokenizer, "a")[-1:]
        self._first_text = decode(tokenizer, self._first)
        self.table: dict[int, TokenText] = {}

    def add(self, ids: Iterable[int]) -> None:
        """Adds these ids to the table; an id unknown to the tokenizer gets no text."""
        for token in set(ids).difference(self.table):
            self.table[token] = self._text(token) if 0 <= token < self.size else ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; unknown ids give no text."""
        return decode(self.tokenizer, [token for token in ids if 0 <= token < self.size])

    def _text(self, token: int) -> TokenText:
        text = decode(self.tokenizer, [*self._first, token]).removeprefix(self._first_text)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        raw = _bytes(self.tokenizer.convert_ids_to_tokens(token))
        return text if raw is None else list(raw)


def _bytes(piece: str) -> bytes | None:
    """The bytes of a vocabulary entry in one of the two common notations; None if it uses neither."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # SentencePiece's byte fallback
        return bytes.fromhex(piece[3:5])
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # byte-level BPE
    return bytes(letters[letter] for letter in piece) if all(letter in letters for letter in piece) else None
