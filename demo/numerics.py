"""The arithmetic that the engine and the trainer must share, so that their log-probabilities agree.

Under bfloat16, linear layers multiply in bfloat16 over float32 weights and a float32 residual stream (autocast), and
the last layer is computed in float32 in both: rounded logits alone would cost 0.03 of mean difference.
"""

from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel


def precision(dtype: torch.dtype) -> AbstractContextManager:
    """The context that a forward pass in `dtype` runs in."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def output_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) float32 of last hidden states (N, D)."""
    with torch.autocast("cpu", enabled=False):
        return model.lm_head(hidden.float())
