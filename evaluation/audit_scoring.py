"""Recomputes the log-probabilities of a sample's tokens on a CPU and compares them with the stored ones.

If they differ, it looks for the reason: another temperature, a shift by one token, or a last turn that was sampled
after tokens other than the stored ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.audit_texts import other_history
from evaluation.audited import Audited, Author, Span
from evaluation.verdict_table import Finding, Mark, Row

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)  # tried where the gap is large
CLOSE, WIDE = 0.1, 0.3  # mean |Δ|: bfloat16 on one side gives up to 0.08, an optimiser step more
NOTICEABLE = 0.02  # a smaller gap needs no reason
BETTER = 0.5  # another reading is right if it leaves less than this share of the gap
ROWS_AT_ONCE = 128  # rows of float32 logits over the whole vocabulary


class Scores(NamedTuple):
    """The stored and the recomputed log-probabilities of one sample's trained tokens."""

    stored: list[float]
    own: list[float]
    readings: dict[str, float]  # mean |Δ| of other readings; empty if the gap needs no reason
    turn: tuple[float, float] | None  # mean |Δ| of the last turn after the stored tokens, and after encoded text


def load_model(folder: Path) -> Any:
    """The model in float32. Raises ValueError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="float32").eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no model: {str(error).splitlines()[0]}") from None


def score(model: Any, sample: Audited, temperature: float) -> Scores:
    """Runs the model over the sample, and again over the last turn if its text would encode to other ids."""
    assert sample.log_probs is not None
    places = [
        place
        for place in range(sample.length)
        if sample.mask[place] == 1 and sample.authors[place] is not Author.ENVIRONMENT
    ]
    own_at = _scorer(model, sample.tokens, sample.start)
    every_own, stored = own_at(temperature), [sample.log_probs[place] for place in places]
    own = [every_own[place] for place in places]
    readings = {}
    if _gap(own, stored) > NOTICEABLE:
        for other in TEMPERATURES:
            scaled = own_at(other)
            readings[f"temperature {other}"] = _gap([scaled[place] for place in places], stored)
        for shift, name in ((1, "the token after"), (-1, "the token before")):
            near = [place for place in places if 0 <= place + shift < sample.length]
            values = [every_own[place + shift] for place in near]
            readings[name] = _gap(values, [sample.log_probs[place] for place in near])
    return Scores(stored, own, readings, _after_text(model, sample, every_own, temperature))


def _after_text(model: Any, sample: Audited, own: Sequence[float], temperature: float) -> tuple[float, float] | None:
    """The last turn's gap after the stored tokens and after their text encoded again; None if these ids are equal."""
    assert sample.log_probs is not None
    if len(sample.trained) < 2 or not (read := other_history(sample)):
        return None
    last: Span = sample.trained[-1]
    ids = sample.tokens[sample.start + last.start : sample.start + last.end]
    after_text = _scorer(model, [*read, *ids], len(read))(temperature)
    stored = sample.log_probs[last.start : last.end]
    return _gap(own[last.start : last.end], stored), _gap(after_text, stored)


def _gap(own: Sequence[float], stored: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(own, stored, strict=True)) / max(len(stored), 1)


def _scorer(model: Any, ids: Sequence[int], start: int) -> Callable[[float], list[float]]:
    """Temperature → log-probability of each id from `start` on, given all before it."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([ids]), logits_to_keep=len(ids) - start + 1).logits[0, :-1]  # (T_resp, V)
    targets = torch.tensor(ids[start:])[:, None]

    def at(temperature: float) -> list[float]:
        found: list[float] = []
        for begin in range(0, len(targets), ROWS_AT_ONCE):
            scaled = logits[begin : begin + ROWS_AT_ONCE].float() / temperature
            chosen = scaled.gather(1, targets[begin : begin + ROWS_AT_ONCE])[:, 0]
            found += (chosen - scaled.logsumexp(dim=1)).tolist()
        return found

    return at


# --- verdicts ------------------------------------------------------------------------------------------------------


def verdicts(scores: Sequence[Scores], temperature: float) -> Iterator[Row]:
    """The rows of the model's group."""
    stored = [value for one in scores for value in one.stored]
    own = [value for one in scores for value in one.own]
    gap = _gap(own, stored)
    differences = sorted(abs(a - b) for a, b in zip(own, stored, strict=True))
    many = differences[int(0.95 * (len(differences) - 1))]
    text = f"mean |Δ log-prob| {gap:.4f}, 95 % below {many:.4f}, at most {differences[-1]:.3f}"
    where = f"{len(stored):,} trained tokens of {len(scores)} samples, temperature {temperature:g}"
    mark: Mark = "✓" if gap <= CLOSE else "!" if gap <= WIDE else "✗"
    remedy = "check that this is the model, and these are the weights, that the rollout used" if gap > CLOSE else ""
    yield Row("model", "log-probs", Finding(mark, f"{text} ({where})", remedy))
    yield Row("model", "weights", weights(own, stored))
    yield Row("model", "reading", _reading(scores, gap, temperature))
    yield Row("model", "history", _history(scores))


def weights(own: Sequence[float], stored: Sequence[float]) -> Finding:
    """Importance weights exp(own - stored) per token; effective sample size is (Σw)² / (n Σw²), 1 if all are equal."""
    found = [math.exp(min(a - b, 50.0)) for a, b in zip(own, stored, strict=True)]
    mean = sum(found) / len(found)
    outside = sum(not 0.5 <= weight <= 2 for weight in found) / len(found)
    size = sum(found) ** 2 / (len(found) * sum(weight**2 for weight in found))
    text = f"importance weights: mean {mean:.3f}, {outside:.1%} outside [0.5, 2], effective sample size {size:.0%}"
    if outside <= 0.01 and size >= 0.9:
        return Finding("✓", text)
    mark: Mark = "!" if outside <= 0.1 and size >= 0.5 else "✗"
    return Finding(mark, text, "fix what the other rows report; slime's --use-tis only limits the harm")


def _reading(scores: Sequence[Scores], gap: float, temperature: float) -> Finding:
    """Checks whether the stored values belong to another temperature or to neighbouring tokens."""
    doubtful = [one.readings for one in scores if one.readings]
    names = doubtful[0] if doubtful and gap > NOTICEABLE else {}
    means = [(sum(readings[name] for readings in doubtful) / len(doubtful), name) for name in names]
    least, best = min(means, default=(gap, ""))
    if least < BETTER * gap:
        found = f"they match {best}: mean |Δ| {least:.4f} instead of {gap:.4f}"
        return Finding("✗", found, "give the rollout's --temperature, which slime also uses for training")
    return Finding("✓", f"no other temperature, and no shift by a token, fits better than {temperature:g}")


def _history(scores: Sequence[Scores]) -> Finding:
    """Checks whether last turns were sampled after tokens other than the stored ones."""
    turns = [one.turn for one in scores if one.turn]
    if not turns:
        return Finding("–", "every sample's text encodes to the stored ids")
    text_fits = sum(after_text < BETTER * stored and stored > NOTICEABLE for stored, after_text in turns)
    ids, text = (sum(gaps) / len(turns) for gaps in zip(*turns, strict=True))
    figures = f"mean |Δ| {ids:.4f} after the stored tokens, {text:.4f} after encoded text"
    if text_fits:
        found = f"{text_fits} of {len(turns)} last turns were not sampled after the stored tokens: {figures}"
        return Finding("✗", found, "send ids, not text")
    return Finding("✓", f"{len(turns)} last turns were sampled after the stored tokens: {figures}")
