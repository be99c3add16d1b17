"""Checks of numbers: lengths, ids, status, reward, log-probabilities. See `audit_checks`."""

import math
import re
from collections.abc import Mapping

from evaluation.audited import NO_TOKENIZER, Audited, Fault
from search_rollout.trajectory import StopReason

FEW_TOKENS = 3  # so few tokens may all have log-probability 0.0, because a certain model rounds to it
_CLOSED = re.compile(r"</\w{1,20}>\s*\S{0,8}\s*\Z")  # a stop string may be overshot by a token


def lengths(sample: Audited) -> Fault | None:
    """Each response token has one mask value and one log-probability, and a prompt comes first."""
    return Fault("; ".join(sample.misfits)) if sample.misfits else None


def mask_values(sample: Audited) -> Fault | None:
    """The mask holds only 0 and 1."""
    strange = [value for value in sample.mask if value not in (0, 1)]
    return Fault(f"the loss mask holds {strange[0]!r}") if strange else None


def vocabulary(sample: Audited) -> Fault | None:
    """The tokenizer knows all ids."""
    if sample.reader is None:
        return NO_TOKENIZER
    size = sample.reader.size
    strange = [token for token in sample.tokens if not 0 <= token < size]
    return Fault(f"id {strange[0]} is outside the vocabulary of {size:,} tokens") if strange else None


def status(sample: Audited) -> Fault | None:
    """The status agrees with how the rollout ended."""
    if sample.status not in ("completed", "truncated", "aborted", "failed"):
        return Fault(f"status is {sample.status!r}")
    if sample.record and not sample.discarded:
        stop = sample.record.stop
        usual = {StopReason.ANSWERED: "completed", StopReason.ABORTED: "aborted"}.get(stop, "truncated")
        return None if sample.status == usual else Fault(f"status is {sample.status}, and the record says {stop.value}")
    if sample.status != "completed":
        return None
    if sample.reader is None:
        return NO_TOKENIZER
    ends = sample.response_ids[-1] in sample.reader.special or _CLOSED.search(sample.reader.decode(sample.tokens[-40:]))
    cut = Fault("status is completed, but it ends in neither an end token nor a closing tag: was it cut?", "!")
    return None if ends else cut


def reward(sample: Audited) -> Fault | None:
    """The reward is a number or a dict of numbers."""
    found = sample.fields.get("reward")
    if found is None and sample.status == "aborted":
        return None
    parts = list(found.values()) if isinstance(found, Mapping) else [found]
    numbers = [part for part in parts if isinstance(part, (int, float))]
    if not numbers or not all(map(math.isfinite, numbers)):
        return Fault("no reward" if found is None else f"the reward is {found!r}")
    return None


def values(sample: Audited) -> Fault | None:
    """Log-probabilities are finite and not above 0."""
    for value in sample.log_probs or ():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return Fault(f"a log-probability is {value!r}")
        if value > 0:
            return Fault(f"a log-probability is {value}, above 0")
    return None


def present(sample: Audited) -> Fault | None:
    """Every trained stretch has a log-probability other than 0.0."""
    if sample.log_probs is None or sample.discarded:
        return None if sample.discarded else Fault("no log-probabilities are stored", "–")
    for span in sample.trained:
        if len(span) >= FEW_TOKENS and not any(sample.log_probs[place] for place in span):
            return Fault(f"{len(span)} trained tokens in a row have log-probability 0.0")
    return None


def alignment(sample: Audited) -> Fault | None:
    """Log-probabilities begin and end where the trained stretches do."""
    stored, spans = sample.log_probs, sample.trained
    before = [span for span in spans if span.stop < sample.length]  # of masked tokens
    after = [span for span in spans if span.start > 0]
    if not stored or not (before or after):
        return Fault("no stretch of log-probabilities borders on masked tokens", "–")
    if before and all(stored[span.start] == 0 and stored[span.stop] != 0 for span in before):
        return Fault("they are shifted to the right by one token")
    if after and all(stored[span.stop - 1] == 0 and stored[span.start - 1] != 0 for span in after):
        return Fault("they are shifted to the left by one token")
    return None
