"""Recomputes the log-probabilities of a sample's tokens on a CPU and compares them with the stored ones.

If they differ, it looks for the reason: another temperature, a shift by one token, or a last turn that was sampled
after tokens other than the stored ones.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.audit_texts import other_history
from evaluation.audited import Audited, Author
from evaluation.verdict_table import Finding, Mark, Row

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)  # tried where the gap is large
CLOSE, WIDE = 0.1, 0.3  # mean |Δ|: bfloat16 on one side gives up to 0.08, an optimiser step more
NOTICEABLE = 0.02  # a smaller gap needs no reason
BETTER = 0.5  # another reading is right if it leaves less than this share of the gap
ROWS_AT_ONCE = 128  # rows of float32 logits over the whole vocabulary


class Scores(NamedTuple):
    """The stored and the recomputed log-probabilities of one sample's trained tokens."""

    stored: np.ndarray
    own: np.ndarray
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


def scored_places(sample: Audited) -> np.ndarray:
    """(T_scored,) where in the response tokens are trained that are not known to be the environment's."""
    chosen = zip(sample.mask, sample.authors, strict=True)
    return np.flatnonzero([trained == 1 and author is not Author.ENVIRONMENT for trained, author in chosen])


def score(model: Any, sample: Audited, temperature: float) -> Scores:
    """Runs the model over the sample, and again over the last turn if its text would encode to other ids."""
    stored, places = np.array(sample.log_probs), scored_places(sample)  # (T_resp,) as `own`, (T_scored,)
    own_at = _scorer(model, sample.tokens, sample.start)
    own = own_at(temperature)
    readings = {}
    if _gap(own[places], stored[places]) > NOTICEABLE:
        for other in TEMPERATURES:
            readings[f"temperature {other}"] = _gap(own_at(other)[places], stored[places])
        for shift, name in ((1, "the token after"), (-1, "the token before")):
            near = places[(places + shift >= 0) & (places + shift < sample.length)]
            readings[name] = _gap(own[near + shift], stored[near])
    return Scores(stored[places], own[places], readings, _after_text(model, sample, own, temperature))


def _after_text(model: Any, sample: Audited, own: np.ndarray, temperature: float) -> tuple[float, float] | None:
    """The last turn's gap after the stored tokens and after their text encoded again; None if these ids are equal."""
    if len(sample.trained) < 2 or not (read := other_history(sample)):
        return None
    last = slice(sample.trained[-1].start, sample.trained[-1].stop)
    after_text = _scorer(model, [*read, *sample.response_ids[last]], len(read))(temperature)
    stored = np.array(sample.log_probs)[last]
    return _gap(own[last], stored), _gap(after_text, stored)


def _gap(own: np.ndarray, stored: np.ndarray) -> float:
    """Mean |Δ|; 0 of no tokens."""
    return float(np.abs(own - stored).sum() / max(len(stored), 1))


def _scorer(model: Any, ids: Sequence[int], start: int) -> Callable[[float], np.ndarray]:
    """Temperature → log-probability of each id from `start` on, given all before it."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([ids]), logits_to_keep=len(ids) - start + 1).logits[0, :-1]  # (T_resp, V)
    targets = torch.tensor(ids[start:])[:, None]

    def at(temperature: float) -> np.ndarray:
        found = []
        for rows, chosen in zip(torch.split(logits, ROWS_AT_ONCE), torch.split(targets, ROWS_AT_ONCE), strict=True):
            scaled = rows.float() / temperature
            found.append(scaled.gather(1, chosen)[:, 0] - scaled.logsumexp(dim=1))
        return torch.cat(found).double().numpy()

    return at


# --- verdicts ------------------------------------------------------------------------------------------------------


def verdicts(scores: Sequence[Scores], temperature: float) -> Iterator[Row]:
    """The rows of the model's group."""
    stored, own = np.concatenate([one.stored for one in scores]), np.concatenate([one.own for one in scores])
    gap, differences = _gap(own, stored), np.abs(own - stored)
    many = np.percentile(differences, 95, method="lower")
    text = f"mean |Δ log-prob| {gap:.4f}, 95 % below {many:.4f}, at most {differences.max():.3f}"
    where = f"{len(stored):,} trained tokens of {len(scores)} samples, temperature {temperature:g}"
    mark: Mark = "✓" if gap <= CLOSE else "!" if gap <= WIDE else "✗"
    remedy = "check that this is the model, and these are the weights, that the rollout used" if gap > CLOSE else ""
    yield Row("model", "log-probs", Finding(mark, f"{text} ({where})", remedy))
    yield Row("model", "weights", weights(own, stored))
    yield Row("model", "reading", _reading(scores, gap, temperature))
    yield Row("model", "history", _history(scores))


def weights(own: np.ndarray, stored: np.ndarray) -> Finding:
    """Importance weights exp(own - stored) per token; effective sample size is (Σw)² / (n Σw²), 1 if all are equal."""
    found = np.exp(np.minimum(own - stored, 50.0))
    mean, outside = found.mean(), ((found < 0.5) | (found > 2)).mean()
    size = found.sum() ** 2 / (len(found) * (found**2).sum())
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
