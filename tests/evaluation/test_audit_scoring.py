"""`audit-tokens --model`: stored log-probabilities beside the model's own, by a real model, a tiny one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_helpers import READER, TOKENIZER, foreign
from transformers import LlamaConfig, LlamaForCausalLM

from evaluation.audit_scoring import score, verdicts, weights
from evaluation.audited import Audited
from evaluation.verdict_table import Finding

pytestmark = pytest.mark.model

Context = Callable[[list[int]], list[int]]


def model(seed: int = 0) -> Any:
    """Random weights, so large that every token depends on all before it."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(TOKENIZER), **sizes, initializer_range=0.3, max_position_embeddings=512)
    return LlamaForCausalLM(config).eval()


MODEL = model()


def log_probs(by: Any, context: list[int], ids: list[int], temperature: float = 1.0) -> list[float]:
    """Of `ids` after `context`, by plain arithmetic."""
    with torch.no_grad():
        logits = by(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
    rows = torch.log_softmax(logits / temperature, dim=-1)
    return rows[torch.arange(len(ids)), torch.tensor(ids)].tolist()


def rolled(by: Any = MODEL, temperature: float = 1.0, context: Context = list, number: int = 0) -> dict[str, Any]:
    """A foreign sample whose turns were scored by a model that read `context(stored tokens)` before each."""
    fields = foreign(index=number)
    start = len(fields["tokens"]) - fields["response_length"]
    # in ids that the tokenizer would not give, so that text has another encoding
    tokens, mask = fields["tokens"], fields["loss_mask"]
    place = next(place for place in range(start + number, len(tokens)) if len(piece(tokens[place])) > 1)
    letters = [TOKENIZER.convert_tokens_to_ids(letter) for letter in piece(tokens[place])]
    tokens[place : place + 1] = letters
    mask[place - start : place - start] = [1] * (len(letters) - 1)
    values, begin = [0.0] * len(mask), 0
    while begin < len(mask):
        end = next((n for n in range(begin, len(mask)) if mask[n] != mask[begin]), len(mask))
        if mask[begin]:
            ids = tokens[start + begin : start + end]
            values[begin:end] = log_probs(by, context(tokens[: start + begin]), ids, temperature)
        begin = end
    return fields | {"response_length": len(mask), "rollout_log_probs": values}


def piece(token: int) -> str:
    return TOKENIZER.convert_ids_to_tokens(token)


def as_text(tokens: list[int]) -> list[int]:
    """What an engine reads that is sent the text."""
    return TOKENIZER.encode(TOKENIZER.decode(tokens))


def judged(*samples: dict[str, Any], temperature: float = 1.0) -> dict[str, Finding]:
    audited = [Audited(fields, "x", Path("x.pt"), READER, "") for fields in samples]
    scores = [score(MODEL, one, temperature) for one in audited]
    return {row.name: row.finding for row in verdicts(scores, temperature)}


def test_a_models_own_log_probabilities_are_passed() -> None:
    findings = judged(*(rolled(number=number) for number in range(4)))
    assert {finding.mark for finding in findings.values()} == {"✓"}
    assert "mean |Δ log-prob| 0.0000" in findings["log-probs"].found
    assert "mean 1.000, 0.0% outside [0.5, 2], effective sample size 100%" in findings["weights"].found
    assert "4 last turns were sampled after the stored tokens" in findings["history"].found


def test_turns_sampled_after_text_are_distinguished_from_turns_sampled_after_ids() -> None:
    findings = judged(*(rolled(number=number, context=as_text) for number in range(3)), rolled(number=3))
    assert findings["history"].mark == "✗"
    assert "3 of 4 last turns were not sampled after the stored tokens" in findings["history"].found


def test_another_temperature_is_reported() -> None:
    samples = [rolled(number=number, temperature=0.8) for number in range(3)]
    finding = judged(*samples)["reading"]
    assert finding.mark == "✗" and "they match temperature 0.8" in finding.found
    assert judged(*samples, temperature=0.8)["reading"].mark == "✓"


@pytest.mark.parametrize(("by", "name"), [(1, "the token before"), (-1, "the token after")])
def test_a_shift_by_one_token_is_reported(by: int, name: str) -> None:
    fields = rolled()
    values = fields["rollout_log_probs"]
    fields["rollout_log_probs"] = [0.0, *values[:-1]] if by > 0 else [*values[1:], 0.0]
    finding = judged(fields)["reading"]
    assert finding.mark == "✗" and f"they match {name}" in finding.found


def test_another_models_log_probabilities_fail() -> None:
    findings = judged(*(rolled(model(seed=1), number=number) for number in range(3)))
    assert findings["log-probs"].mark == findings["weights"].mark == "✗"
    assert findings["reading"].mark == "✓"  # none of these explains it


def test_weights_are_those_of_a_table_by_hand() -> None:
    # exp(own - stored): 2.5, 1, 1, 0.5; mean 1.25; (5)^2 / (4 * (6.25 + 1 + 1 + 0.25)) = 25 / 34
    finding = weights(np.array([0.9162907, 0.0, 0.0, -0.6931471]), np.zeros(4))
    assert finding.found == "importance weights: mean 1.250, 25.0% outside [0.5, 2], effective sample size 74%"
    assert finding.mark == "✗"
