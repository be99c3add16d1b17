"""Runs encoders with torch: in fp16 on a GPU, in float32 on a CPU."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from local_dense_retriever.encoder import Encoder, pool
from local_dense_retriever.errors import InputError
from local_dense_retriever.machine import visible_devices


class TorchEncoder(Encoder):
    """A transformers encoder on one device. Call it from one thread."""

    usual_batch_size = 64

    def __init__(self, name: str, model: str, batch_size: int | None = None, device: str | None = None) -> None:
        """Loads the weights; `name` is a key of STYLES, `model` a local folder or a name on the Hugging Face hub.

        A local folder is loaded without any access to the hub. `device` None takes the first GPU, or the CPU. Raises
        InputError if name or model is wrong.
        """
        super().__init__(name, batch_size)
        self._device = device or visible_devices()[0]
        self._tokenizer, self._model, _ = load_model(model, self._device)
        self.dim = self._model.config.hidden_size

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str], max_tokens: int) -> NDArray[np.float32]:
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        batch = batch.to(self._device)
        hidden = self._model(**batch).last_hidden_state.float()  # (B, T, D) float32: fp16 sums lose digits
        pooled = pool(hidden, batch["attention_mask"], self.style.pooling)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def load_model(
    model: str, device: str, kind: Any = AutoModel, what: str = "the encoder --retriever_model", **options: Any
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, list[str]]:
    """Tokenizer, weights in fp16 on a GPU or float32 on a CPU, names of missing weights; InputError if that fails.

    `options` are from_pretrained's.
    """
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        weights, found = kind.from_pretrained(model, output_loading_info=True, **options)
    except Exception as error:  # OSError, ValueError, safetensors' own, …, depending on the bad file
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot load {what} {model} ({reason}): give a folder with config.json, tokenizer and weights, or a name "
            "on the Hugging Face hub"
        ) from error
    # Without tokenizer files transformers raises no error, but returns a tokenizer of a few special tokens.
    if len(tokenizer) < weights.config.vocab_size / 2:
        raise InputError(
            f"the tokenizer of {what} {model} knows {len(tokenizer)} of the model's {weights.config.vocab_size} "
            "tokens: copy the model's tokenizer files too (tokenizer.json, vocab.txt)"
        )
    weights.to(device=device, dtype=torch.float16 if device.startswith("cuda") else torch.float32)
    return tokenizer, weights, list(found["missing_keys"])


class TokenStates(torch.nn.Module):
    """A model as a function of its tokenizer's tensors, in the order of `names`; export_onnx.py writes it."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self._model = model
        self._names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        """-> (B, T, D) token states."""
        return self._model(**dict(zip(self._names, tensors, strict=True))).last_hidden_state
