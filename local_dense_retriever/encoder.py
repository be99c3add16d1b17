"""Texts to vectors: three families of encoders, each with the prefixes and the pooling it was trained with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from local_dense_retriever.devices import visible_devices
from local_dense_retriever.errors import InputError

MAX_QUERY_TOKENS = 256
MAX_PASSAGE_TOKENS = 256  # a wiki-18 passage is 100 words


class TextEncoder(Protocol):
    """What the index builder and the server need of an encoder."""

    name: str
    dim: int

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]: ...  # (B, D), rows L2-normalised
    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]: ...  # (B, D), rows L2-normalised


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D) token states and their (B, T) mask of ones and zeros -> (B, D), the mean of the unmasked states."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def cls_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D) token states -> (B, D), the state of the first token. Needs padding on the right, as BERT has it."""
    return hidden[:, 0]


@dataclass(frozen=True)
class EncoderStyle:
    query_prefix: str
    passage_prefix: str
    pooling: Callable[[Tensor, Tensor], Tensor]  # (B, T, D), (B, T) -> (B, D)


STYLES = {
    "e5": EncoderStyle("query: ", "passage: ", mean_pooling),
    "bge": EncoderStyle("Represent this sentence for searching relevant passages: ", "", cls_pooling),
    "minilm": EncoderStyle("", "", mean_pooling),
}


class Encoder:
    """A transformers encoder on the GPU in fp16 if there is one, else on the CPU in fp32. Call it from one thread."""

    def __init__(
        self,
        name: str,
        model: str,
        batch_size: int = 64,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Loads the weights; `name` is a key of STYLES, `model` a local folder or a name on the Hugging Face hub.

        A local folder is loaded without any access to the hub. `device` is torch's name of one; None takes the first
        GPU, or the CPU. `dtype` None is fp16 on a GPU and fp32 on a CPU. Raises InputError if name or model is wrong.
        """
        if name not in STYLES:
            raise InputError(f"--retriever_name is {name!r}: the known encoders are {', '.join(STYLES)}")
        self.name = name
        self._style = STYLES[name]
        self._batch_size = batch_size
        self._device = torch.device(device) if device else visible_devices()[0]
        self._tokenizer, self._model = _load(model)
        usual = torch.float16 if self._device.type == "cuda" else torch.float32
        self._model.to(device=self._device, dtype=dtype or usual)
        self._model.eval()
        self.dim: int = self._model.config.hidden_size

    def encode_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """-> (B, D) float32, rows L2-normalised, in the order of the queries."""
        return self._encode([self._style.query_prefix + query for query in queries], MAX_QUERY_TOKENS)

    def encode_passages(self, passages: Sequence[str]) -> NDArray[np.float32]:
        """-> (B, D) float32, rows L2-normalised, in the order of the passages."""
        return self._encode([self._style.passage_prefix + passage for passage in passages], MAX_PASSAGE_TOKENS)

    def _encode(self, texts: list[str], max_tokens: int) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        # Neighbours in length share a batch, so that little of it is padding. Longest first: a batch that does not
        # fit into memory fails at once and not at the end.
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        for start in range(0, len(texts), self._batch_size):
            rows = by_length[start : start + self._batch_size]
            vectors[rows] = self._encode_batch([texts[i] for i in rows], max_tokens)
        return vectors

    @torch.inference_mode()
    def _encode_batch(self, texts: list[str], max_tokens: int) -> NDArray[np.float32]:
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        batch = batch.to(self._device)
        hidden = self._model(**batch).last_hidden_state.float()  # (B, T, D); float32, as fp16 sums lose digits
        pooled = self._style.pooling(hidden, batch["attention_mask"])
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def _load(model: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        weights = AutoModel.from_pretrained(model)
    except Exception as error:  # OSError, ValueError, safetensors' own, … depending on which of the files is wrong
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot load the encoder --retriever_model {model} ({reason}): "
            "give a folder with config.json, tokenizer and weights, or a name on the Hugging Face hub"
        ) from error
    # From a folder without tokenizer files transformers makes a tokenizer of a few special tokens, and no error.
    if len(tokenizer) < weights.config.vocab_size / 2:
        raise InputError(
            f"the tokenizer of --retriever_model {model} knows {len(tokenizer)} of the model's "
            f"{weights.config.vocab_size} tokens: copy the model's tokenizer files too (tokenizer.json, vocab.txt)"
        )
    return tokenizer, weights
