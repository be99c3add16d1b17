"""Compares two runs of the same rollouts; reports the first difference: question, sample, turn, token, and what.

It reads samples written by `evaluation.records.record_of`. It compares what training reads (ids, mask,
log-probabilities, reward, weight versions) and what the records contain: actions, queries, passages, stop reason. It
ignores times and identifiers.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from search_rollout.samples.record import METADATA_KEY, RolloutRecord, read_record

Decode = Callable[[Sequence[int]], str]


class Difference(NamedTuple):
    """The first difference between two runs of the same questions."""

    question: str  # its id
    sample: int  # which sample of the question, from 0
    turn: int | None  # the model's turn, from 1; an observation belongs to the turn before it
    token: int | None  # position in the response, from 0
    what: str

    def __str__(self) -> str:
        where = [f"question {self.question}", f"sample {self.sample}"]
        where += [f"turn {self.turn}"] if self.turn is not None else []
        where += [f"token {self.token}"] if self.token is not None else []
        return f"{', '.join(where)}: {self.what}"


def first_difference(
    recorded: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]], decode: Decode
) -> Difference | None:
    """Compares sample by sample in the recorded order; None if all are equal. `decode` shows token ids as text."""
    met: dict[str, int] = {}
    for old, new in zip(recorded, again, strict=False):
        number = met.get(old["id"], 0)
        met[old["id"]] = number + 1
        if old["id"] != new["id"]:
            return Difference(old["id"], number, None, None, f"question {new['id']} was asked instead")
        if found := _in_sample(old, new, decode):
            return Difference(old["id"], number, *found)
    if len(recorded) != len(again):
        shorter, longer = sorted((recorded, again), key=len)
        row = longer[len(shorter)]
        return Difference(row["id"], met.get(row["id"], 0), None, None, f"{len(again)} samples, not {len(recorded)}")
    return None


def _in_sample(
    old: Mapping[str, Any], new: Mapping[str, Any], decode: Decode
) -> tuple[int | None, int | None, str] | None:
    """Turn, token and description of the first difference; None if the samples are equal."""
    begins = [len(row["tokens"]) - row["response_length"] for row in (old, new)]
    prompts = [row["tokens"][:begin] for row, begin in zip((old, new), begins, strict=True)]
    if prompts[0] != prompts[1]:
        return None, None, "the prompt's ids"
    record, other = (read_record(row["metadata"][METADATA_KEY]) for row in (old, new))
    responses = [row["tokens"][begin:] for row, begin in zip((old, new), begins, strict=True)]
    columns = {
        "id": responses,
        "log-probability": [row["rollout_log_probs"] or [] for row in (old, new)],
        "loss mask": [row["loss_mask"] or [] for row in (old, new)],
    }
    places = {name: place for name, pair in columns.items() if (place := _first(*pair)) is not None}
    if places:
        name = min(places, key=lambda name: places[name])  # if equal, the earlier column
        token = places[name]
        show = (lambda value: f"{value} {decode([value])!r}") if name == "id" else repr
        was, now = (show(values[token]) if token < len(values) else "none" for values in columns[name])
        return _turn_at(record, token), token, f"{name} {now}, not {was}{_searches_differ(record, other)}"
    return _in_record(old, new, record, other)


def _in_record(
    old: Mapping[str, Any], new: Mapping[str, Any], record: RolloutRecord, other: RolloutRecord
) -> tuple[int | None, None, str] | None:
    """The first difference in the records of samples with equal tokens."""
    for number, (was, now) in enumerate(zip(record.turns, other.turns, strict=False), start=1):
        for name in ("action", "answer", "queries", "mistakes", "fault"):
            if getattr(was, name) != getattr(now, name):
                return number, None, f"{name} {getattr(now, name)!r}, not {getattr(was, name)!r}"
        if [result.passages for result in was.results] != [result.passages for result in now.results]:
            return number, None, f"the passages of {was.queries}"
    values = {
        "number of turns": (len(record.turns), len(other.turns)),
        "stop reason": (record.stop.value, other.stop.value),
        "spans": (record.spans, other.spans),
        **{name: (old.get(name), new.get(name)) for name in ("reward", "status", "weight_versions")},
    }
    for name, (before, after) in values.items():
        if before != after:
            return None, None, f"{name} {after!r}, not {before!r}"
    return None


def _first(ones: Sequence[Any], others: Sequence[Any]) -> int | None:
    """The first position at which two sequences differ, or where the shorter one ends."""
    differing = (at for at, (one, other) in enumerate(zip(ones, others, strict=False)) if one != other)
    return next(differing, None if len(ones) == len(others) else min(len(ones), len(others)))


def _turn_at(record: RolloutRecord, token: int) -> int:
    """The turn that a token of the response belongs to, from 1."""
    turn = 0
    for span, end in zip(record.spans, accumulate(span.tokens for span in record.spans), strict=True):
        turn += span.kind == "turn"
        if token < end:
            break
    return max(turn, 1)


def _searches_differ(record: RolloutRecord, other: RolloutRecord) -> str:
    """Explains a different observation by its search, if that already differed."""
    for was, now in zip(record.searches, other.searches, strict=False):
        if was.query == now.query and (was.passages, was.error) != (now.passages, now.error):
            return f"; the search {was.query!r} found other passages" + (f" ({now.error})" if now.error else "")
    return ""
