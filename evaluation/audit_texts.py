"""Checks that texts match their ids: ids decode to them and, if needed, they encode to the ids. See `audit_checks`."""

import re

from evaluation.audited import NO_TOKENIZER, Audited, Fault
from search_rollout.protocols.chat_template import encode

_TEMPLATE_MARK = re.compile(r"<\|im_start\|>(?:system|user|assistant|tool)\n|<\|start_header_id\|>\w{1,20}<\|")


def prompt(sample: Audited) -> Fault | None:
    """The response begins where the prompt ends."""
    text = sample.fields.get("prompt")
    if sample.reader is None:
        return NO_TOKENIZER
    if not isinstance(text, str):
        return Fault("the prompt is a list of messages", "–")
    stored = sample.reader.decode(sample.tokens[: sample.start])
    if stored == text:
        return None
    if stored and text.startswith(stored):
        return Fault(
            f"the last {len(text) - len(stored)} characters of the prompt count as response, and may be trained"
        )
    if stored.startswith(text):
        return Fault(f"the first {len(stored) - len(text)} characters of the response count as prompt")
    return Fault("the prompt's text differs from its decoded ids", "–")


def text_of_ids(sample: Audited) -> Fault | None:
    """`response` equals the decoded ids."""
    text = sample.fields.get("response")
    if not isinstance(text, str):
        return Fault(f"`response` is {type(text).__name__}, not a string")
    if sample.reader is None:
        return NO_TOKENIZER
    stored = sample.reader.decode(sample.response_ids)
    if stored == text:
        return None
    if stored.startswith(text):
        return Fault(f"the text is trimmed and the ids are not: {stored[len(text) :][:30]!r} follows")
    if text.startswith(stored):
        return Fault(f"the ids are cut and the text is not: {text[len(stored) :][:30]!r} follows")
    for mark in sample.reader.special.values():
        stored, text = stored.replace(mark, ""), text.replace(mark, "")
    if stored == text:
        return Fault("the text leaves out special tokens", "!")
    return Fault(f"text and ids differ: {_difference(text, stored)}")


def _difference(text: str, stored: str) -> str:
    place = next((n for n, (a, b) in enumerate(zip(text, stored, strict=False)) if a != b), min(len(text), len(stored)))
    return f"{text[place:][:20]!r}, where the ids say {stored[place:][:20]!r}"


def special_tokens(sample: Audited) -> Fault | None:
    """The template's marks are special tokens, not spelled out in ordinary ones."""
    if sample.reader is None:
        return NO_TOKENIZER
    spelled = sample.reader.decode([token for token in sample.tokens if token not in sample.reader.special])
    if _TEMPLATE_MARK.search(spelled):
        return Fault("marks of the chat template are spelled out in ordinary tokens")
    text = next((mark for mark in sample.reader.special.values() if mark and mark in spelled), None)
    return Fault(f"{text} is spelled out in ordinary tokens", "!") if text else None


def history(sample: Audited) -> Fault | None:
    """The text before the last turn encodes to its ids; a rollout that sends text depends on it."""
    sent = sample.sent or ("ids" if sample.record else "")  # this plugin sends ids
    if sent == "ids":
        return None
    if sample.reader is None:
        return NO_TOKENIZER
    if len(sample.trained) < 2 or not other_history(sample):
        return None
    text = "the text before the last turn encodes to other ids"
    return (
        Fault(f"{text}, which it was sampled from") if sent else Fault(f"{text}, which matters if text was sent", "!")
    )


def other_history(sample: Audited) -> list[int]:
    """The ids before the last turn if text was sent to the engine; empty if they equal the stored ids."""
    assert sample.reader is not None
    before = sample.tokens[: sample.start + sample.trained[-1].start]
    encoded = encode(sample.reader.tokenizer, sample.reader.decode(before))
    return [] if encoded == before else encoded
