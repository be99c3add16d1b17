"""The text of each id of a tokenizer, or its bytes if they are only part of a character."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from search_rollout.protocols.chat_template import decode, encode

TokenText = str | list[int]  # a list: bytes of part of a character


class TokenTexts:
    """A table of ids and their texts that grows with the ids it meets."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        # Decoded after another token, because some tokenizers drop spaces at the start of a text.
        self._first = encode(tokenizer, "a")[-1:]
        self._first_text = decode(tokenizer, self._first)
        self.table: dict[int, TokenText] = {}

    def add(self, ids: Iterable[int]) -> None:
        """Adds these ids to the table; an id unknown to the tokenizer gets no text."""
        for token in set(ids).difference(self.table):
            self.table[token] = self._text(token) if 0 <= token < self._size else ""

    def decode_to(self, ids: list[int], text: str) -> bool:
        """True if the ids, which must all be in the table, decode to `text`."""
        try:
            if "".join(map(self.table.__getitem__, ids)) == text:  # type: ignore[arg-type]
                return True
        except TypeError:  # some are bytes
            pass
        return decode(self._tokenizer, [token for token in ids if 0 <= token < self._size]) == text

    def _text(self, token: int) -> TokenText:
        text = decode(self._tokenizer, [*self._first, token]).removeprefix(self._first_text)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        raw = _bytes(self._tokenizer.convert_ids_to_tokens(token))
        return text if raw is None else list(raw)


def _bytes(piece: str) -> bytes | None:
    """The bytes of a vocabulary entry in one of the two common notations; None if it uses neither."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # SentencePiece's byte fallback
        return bytes.fromhex(piece[3:5])
    letters = _byte_of_letter()
    return bytes(letters[letter] for letter in piece) if all(letter in letters for letter in piece) else None


@cache
def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes a byte as its Latin-1 letter if that is visible, otherwise as a letter from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)).difference(visible))
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
