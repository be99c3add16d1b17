"""The arithmetic that the engine and the trainer must share, so that their log-probabilities agree.

Under bfloat16, linear layers multiply in bfloat16 over float32 weights and a float32 residual stream (autocast), and
the last layer is computed in float32 in both: rounded logits alone would cost 0.03 of mean difference.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel


@contextmanager
def computing(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """What a forward pass in `dtype` runs in. Tensors made inside are on the model's device."""
    device = model.device
    bfloat16 = dtype == torch.bfloat16
    # On a CPU no device is set: it would slow every small operation down.
    with nullcontext() if device.type == "cpu" else device, torch.autocast(device.type, torch.bfloat16, bfloat16):
        yield


def output_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) float32 of last hidden states (N, D)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return model.lm_head(hidden.float())
