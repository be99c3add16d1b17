"""The arithmetic that the engine and the trainer must share, so that their log-probabilities agree.

With bfloat16, linear layers multiply in bfloat16 over float32 weights and a float32 residual stream (autocast). Both
compute the last layer in float32: rounded logits alone would cause a mean difference of 0.03.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel


@contextmanager
def computing(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """The context for a forward pass in `dtype`. Tensors created in it are on the model's device."""
    device = model.device
    bfloat16 = dtype == torch.bfloat16
    # On a CPU no device is set, because that slows down every small operation.
    with nullcontext() if device.type == "cpu" else device, torch.autocast(device.type, torch.bfloat16, bfloat16):
        yield


def output_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (N, V) float32 of last hidden states (N, D)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return model.lm_head(hidden.float())
