"""Checks that the loss mask is 1 for every token that the model wrote and 0 for all others. See `audit_checks`."""

import re

from evaluation.audited import NO_TOKENIZER, Audited, Author, Fault
from evaluation.verdict_table import Mark

NO_MARKS = Fault("nothing in the text separates the environment's tokens from the model's", "–")
_OPENS_MESSAGE = re.compile(rb"<\|(?:im_start|start_header_id)\|>")
_ENDS_MESSAGE = re.compile(rb"<\|(?:im_end|eot_id|eom_id)\|>\s*\Z")
_CUT_TAG = re.compile(rb"</(?:search|answer|tool_call|think)\s*\Z")


def trained_at_all(sample: Audited) -> Fault | None:
    """Some token has mask 1."""
    return None if sample.trained else Fault("the loss mask is 0 everywhere: nothing is trained")


def model_tokens(sample: Audited) -> Fault | None:
    """The model's tokens are trained."""
    spans = sample.spans(Author.MODEL)
    if not spans:
        return _unknown(sample)
    mark: Mark = "!" if len(set(sample.fields.get("weight_versions") or ())) > 1 else "✗"
    why = " (a resumed rollout: --mask-offpolicy-in-partial-rollout does this)" if mark == "!" else ""
    for number, span in enumerate(spans, 1):
        masked = [place for place in span if sample.mask[place] == 0 and not _is_last_end(sample, place)]
        if len(masked) == len(span):
            return Fault(f"turn {number} of the model is masked, all {len(masked)} tokens{why}", mark)
        if masked:
            return Fault(f"{len(masked)} of {len(span)} tokens of turn {number} are masked{why}", mark)
    return None


def _unknown(sample: Audited) -> Fault:
    return NO_MARKS if sample.reader or sample.record else NO_TOKENIZER


def turn_ends(sample: Audited) -> Fault | None:
    """Each turn has its end-of-turn token, trained, and its closing tag."""
    if sample.reader is None:
        return NO_TOKENIZER
    last = sample.length - 1
    if sample.mask[last] == 0 and sample.mask[last - 1] == 1 and _is_last_end(sample, last):
        return Fault("the end-of-turn token of the last turn is masked")
    for span in sample.spans(Author.END):
        if any(sample.mask[place] == 0 for place in span):
            sampled = bool(sample.log_probs and sample.log_probs[span.start])
            doubt = "" if sampled else ", unless a stop string ended the turn"
            return Fault(f"an end-of-turn token is masked{doubt}", "✗" if sampled else "!")
    return _missing_end(sample)


def _missing_end(sample: Audited) -> Fault | None:
    if sample.record:
        return None
    text = b"".join
    for span in sample.spans(Author.ENVIRONMENT):
        before = text(sample.pieces[max(0, span.start - 20) : span.start])
        opens = _OPENS_MESSAGE.match(text(sample.pieces[span.start : span.start + 20]))
        if opens and before and not _ENDS_MESSAGE.search(before):
            return Fault("a message follows a turn that has no end-of-turn token")
        if _CUT_TAG.search(before):
            return Fault("a turn's closing tag is cut")
    return None


def _is_last_end(sample: Audited, place: int) -> bool:
    special = sample.reader.special if sample.reader else {}
    return place == sample.length - 1 and sample.response_ids[place] in special


def environment(sample: Audited) -> Fault | None:
    """The environment's tokens are not trained."""
    spans = sample.spans(Author.ENVIRONMENT)
    if not spans:
        return None if Author.MODEL in sample.authors else _unknown(sample)
    trained = [place for span in spans for place in span if sample.mask[place] == 1]
    if not trained:
        return None
    everything = sample.given_mask is not None and all(value == 1 for value in sample.mask)
    text = f"{len(trained)} tokens of the environment are trained"
    if sample.log_probs is None:
        doubt = f"{text}, like all others: right only for the loss mask mode `simple`"
        return Fault(doubt, "!") if everything else Fault(text)
    if not all(sample.log_probs[place] for place in trained):
        return Fault(f"{text}, without a log-probability")
    if not sample.record:
        return Fault(f"{text}, with log-probabilities: the model wrote them itself, or the mask is `simple`", "!")
    scored = "all tokens are trained, each with its log-probability: a `simple` mask"
    return Fault(scored, "–") if everything else Fault(text)
