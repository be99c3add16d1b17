"""A rolled-out sample for the auditor: its numbers and, as far as possible, the author of each token.

A sample of this plugin has a record of who wrote what. For others, marks in the text decide: text inside <information>
or a tool message is the environment's, text around it is the model's, and blanks between the two may be either's.
Without such marks the auditor does not guess.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.records import rollout_of
from evaluation.token_texts import TokenTexts
from evaluation.verdict_table import Mark
from search_rollout.samples.record import RecordError, RolloutRecord


def _header(role: bytes) -> bytes:
    """The header of a message in ChatML or Llama 3's format."""
    return rb"(?:<\|im_start\|>" + role + rb"|<\|start_header_id\|>" + role + rb"<\|end_header_id\|>)\n{1,2}"


_ENVIRONMENT = re.compile(
    b"|".join(
        [
            rb"<(?P<tag>information|tool_response|observation)>.*?</(?P=tag)>",
            _header(rb"(?:user|tool|ipython)") + rb".*?" + _header(rb"assistant"),
            rb"My previous action is invalid\..*?Let me try again\.",  # Search-R1's correction
        ]
    ),
    re.DOTALL,
)
_END_BEFORE = re.compile(rb"(?:<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>)\s*\Z")


class Fault(NamedTuple):
    """What is wrong with a sample; with the mark –, why that is unknown."""

    text: str
    mark: Mark = "✗"


NO_TOKENIZER = Fault("give --tokenizer or --model", "–")


class Author(Enum):
    MODEL = "model"
    ENVIRONMENT = "environment"
    END = "end of turn"  # the mark before a tool message; the model wrote it unless a stop string ended its turn
    UNKNOWN = "unknown"


class Reader(TokenTexts):
    """A tokenizer with the operations that the auditor needs."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        known = tokenizer.added_tokens_decoder.items()
        self.special: dict[int, str] = {number: token.content for number, token in known if token.special}

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id."""
        self.add(ids)
        found = (self.table[token] for token in ids)
        return [piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else bytes(piece) for piece in found]


class Audited:
    """One sample. If `misfits` is empty, ids, mask and log-probabilities are aligned lists of numbers."""

    def __init__(self, fields: Mapping[str, Any], where: str, file: Path, reader: Reader | None, sent: str) -> None:
        """`reader` wraps the rollout's tokenizer, if known. `sent`: "ids", "text" or "" (unknown)."""
        self.fields = fields
        self.where = where
        self.reader = reader
        self.sent = sent
        self.batch = (file, fields.get("phase"))  # a demo's log has a phase for each step
        self.tokens = _list(fields.get("tokens")) or []
        self.length: Any = fields.get("response_length")
        self.given_mask = _list(fields.get("loss_mask"))
        self.log_probs = _list(fields.get("rollout_log_probs"))

    @cached_property
    def misfits(self) -> list[str]:
        """The inconsistencies between the sample's parts; empty if there are none."""
        if not self.tokens or not all(type(token) is int for token in self.tokens):
            return ["`tokens` is not a list of whole numbers"]
        count = len(self.tokens)
        if type(self.length) is not int or not 0 <= self.length < count:
            return [f"response_length is {self.length!r}, with {count} tokens, at least one of which is the prompt's"]
        parts = {"loss_mask": self.given_mask, "rollout_log_probs": self.log_probs}
        found = [
            f"{name} has {len(values)} values for {self.length} response tokens"
            for name, values in parts.items()
            if values is not None and len(values) != self.length
        ]
        if self.record and not self.discarded and sum(span.tokens for span in self.record.spans) != self.length:
            found.append("the spans of its record cover another number of tokens")
        return found

    @property
    def mask(self) -> list[Any]:
        """The loss mask; a missing mask is all ones, as in slime."""
        return [1] * self.length if self.given_mask is None else self.given_mask

    @property
    def start(self) -> int:
        """The index in `tokens` of the response's first token."""
        return len(self.tokens) - self.length

    @property
    def response_ids(self) -> list[int]:
        return self.tokens[self.start :]

    @property
    def status(self) -> str:
        status = self.fields.get("status")
        return str(getattr(status, "value", status))

    @cached_property
    def record(self) -> RolloutRecord | None:
        """This plugin's record; None for samples of other plugins."""
        try:
            return rollout_of(self.fields)
        except RecordError:
            return None

    @cached_property
    def discarded(self) -> bool:
        """True if the sample is intentionally not trained."""
        return bool(self.fields.get("remove_sample")) or bool(self.record and self.record.discarded)

    @cached_property
    def pieces(self) -> list[bytes]:
        assert self.reader is not None
        return self.reader.pieces(self.response_ids)

    @property
    def known_by(self) -> str:
        if self.record:
            return "this plugin's record"
        return "marks in the text" if not self.misfits and Author.MODEL in self.authors else "nothing"

    @cached_property
    def authors(self) -> list[Author]:
        if self.record and not self.discarded:
            return [
                Author.MODEL if span.kind == "turn" else Author.ENVIRONMENT
                for span in self.record.spans
                for _ in range(span.tokens)
            ]
        text = b"".join(self.pieces) if self.reader else b""
        blocks = [match.span() for match in _ENVIRONMENT.finditer(text)]
        if not blocks:
            return [Author.UNKNOWN] * self.length
        ends = list(accumulate(map(len, self.pieces), initial=0))
        return [_author(text, begin, end, blocks) for begin, end in pairwise(ends)]

    def spans(self, author: Author) -> list[range]:
        """The response's positions that one author wrote, stretch by stretch."""
        return _spans([one is author for one in self.authors])

    @cached_property
    def trained(self) -> list[range]:
        """The response's positions with mask 1, stretch by stretch."""
        return _spans([value == 1 for value in self.mask])


def _author(text: bytes, begin: int, end: int, blocks: list[tuple[int, int]]) -> Author:
    """The author of the token at bytes `begin` to `end`; `blocks` are the environment's byte ranges."""
    for first, last in blocks:
        if first <= begin and end <= last:
            return Author.ENVIRONMENT
        if begin < last and end > first:  # part of it
            return Author.UNKNOWN
        if end <= first and (mark := _END_BEFORE.search(text, max(0, first - 40), first)) and begin >= mark.start():
            return Author.END if text[begin:end].strip() else Author.UNKNOWN
        if (begin >= last and not text[last:end].strip()) or (end <= first and not text[begin:first].strip()):
            return Author.UNKNOWN  # blanks next to a block
    return Author.MODEL


def _spans(wanted: list[bool]) -> list[range]:
    """The positions of each stretch of True."""
    stretches = [list(run) for one, run in groupby(range(len(wanted)), key=wanted.__getitem__) if one]
    return [range(run[0], run[-1] + 1) for run in stretches]


def _list(values: Any) -> list[Any] | None:
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    return list(values) if isinstance(values, (list, tuple)) else None
