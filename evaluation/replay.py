"""Compares two runs of the same rollouts; reports the first difference: question, sample, turn, token, and what.

It reads samples written by `evaluation.records.record_of`. It compares what training reads (ids, mask,
log-probabilities, reward, weight versions) and what the records contain: actions, queries, passages, stop reason. It
ignores times and identifiers.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from search_rollout.samples.record import METADATA_KEY, RolloutRecord, read_record

Decode = Callable[[Sequence[int]], str]


def first_difference(
    recorded: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]], decode: Decode
) -> str | None:
    """Where and how two runs of the same questions first differ, in the recorded order; None if all samples are equal.

    Samples of a question count from 0, turns from 1, tokens of the response from 0; an observation belongs to the turn
    before it. `decode` shows token ids as text.
    """
    met: Counter[str] = Counter()
    for old, new in zip(recorded, again, strict=False):
        where = f"question {old['id']}, sample {met[old['id']]}"
        met[old["id"]] += 1
        if old["id"] != new["id"]:
            return f"{where}: question {new['id']} was asked instead"
        if found := _in_sample(old, new, decode):
            return f"{where}{found}"
    if len(recorded) != len(again):
        shorter, longer = sorted((recorded, again), key=len)
        name = longer[len(shorter)]["id"]
        return f"question {name}, sample {met[name]}: {len(again)} samples, not {len(recorded)}"
    return None


def _in_sample(old: Mapping[str, Any], new: Mapping[str, Any], decode: Decode) -> str | None:
    """Turn, token and description of the first difference; None if the samples are equal."""
    begins = [len(row["tokens"]) - row["response_length"] for row in (old, new)]
    prompts = [row["tokens"][:begin] for row, begin in zip((old, new), begins, strict=True)]
    if prompts[0] != prompts[1]:
        return ": the prompt's ids"
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
        where = f", turn {_turn_at(record, token)}, token {token}"
        return f"{where}: {name} {now}, not {was}{_searches_differ(record, other)}"
    return _in_record(old, new, record, other)


def _in_record(
    old: Mapping[str, Any], new: Mapping[str, Any], record: RolloutRecord, other: RolloutRecord
) -> str | None:
    """The first difference in the records of samples with equal tokens."""
    for number, (was, now) in enumerate(zip(record.turns, other.turns, strict=False), start=1):
        for name in ("action", "answer", "queries", "mistakes", "fault"):
            if getattr(was, name) != getattr(now, name):
                return f", turn {number}: {name} {getattr(now, name)!r}, not {getattr(was, name)!r}"
        if [result.passages for result in was.results] != [result.passages for result in now.results]:
            return f", turn {number}: the passages of {was.queries}"
    values = {
        "number of turns": (len(record.turns), len(other.turns)),
        "stop reason": (record.stop.value, other.stop.value),
        "spans": (record.spans, other.spans),
        **{name: (old.get(name), new.get(name)) for name in ("reward", "status", "weight_versions")},
    }
    for name, (before, after) in values.items():
        if before != after:
            return f": {name} {after!r}, not {before!r}"
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
