"""A cross-encoder reads query and passage together and so ranks better than two vectors, at a cost for each pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from local_dense_retriever.devices import visible_devices
from local_dense_retriever.errors import InputError
from local_dense_retriever.retriever import Hit

MAX_PAIR_TOKENS = 512
BATCH_PAIRS = 32


class CrossEncoder:
    """A sequence classifier on the GPU in fp16 if there is one, else on the CPU in fp32. Call it from one thread."""

    def __init__(self, model: str, device: str | None = None) -> None:
        """Loads the weights of a local folder or from the Hugging Face hub; `device` is torch's name of one.

        Raises InputError if the model cannot be loaded or is no cross-encoder.
        """
        self.name = model
        self._device = torch.device(device) if device else visible_devices()[0]
        transformers_logging.disable_progress_bar()
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it lists what the weights lack, or have too much
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._model, loaded = AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
        except Exception as error:  # whatever transformers, tokenizers and safetensors raise
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"cannot load --reranker {model} ({reason}): give a folder with config.json, tokenizer and weights, or "
                "a name on the Hugging Face hub"
            ) from error
        finally:
            transformers_logging.set_verbosity(verbosity)
        config = self._model.config
        if loaded["missing_keys"]:  # transformers makes them up
            raise InputError(f"--reranker {model} is no cross-encoder: its weights have no classification head")
        if config.num_labels > 2:
            raise InputError(f"--reranker {model} sorts into {config.num_labels} classes: a cross-encoder has 1 or 2")
        if len(self._tokenizer) < config.vocab_size / 2:  # made up too, from a folder without tokenizer files
            raise InputError(f"--reranker {model} lacks its tokenizer: copy tokenizer.json or vocab.txt too")
        positions = getattr(config, "max_position_embeddings", MAX_PAIR_TOKENS)
        self._max_tokens = min(MAX_PAIR_TOKENS, self._tokenizer.model_max_length, positions)
        self._model.to(device=self._device, dtype=torch.float16 if self._device.type == "cuda" else torch.float32)
        self._model.eval()

    def logits(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """(N,) for N pairs of query and passage: the larger, the better they fit; -inf where the model makes NaN."""
        logits = np.empty(len(pairs))
        # Neighbours in length share a batch, so that little of it is padding; the longest first, as in Encoder.
        by_length = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])), reverse=True)
        for start in range(0, len(pairs), BATCH_PAIRS):
            rows = by_length[start : start + BATCH_PAIRS]
            logits[rows] = self._batch_logits([pairs[i] for i in rows])
        return np.where(np.isnan(logits), -np.inf, logits)

    @torch.inference_mode()
    def _batch_logits(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        queries, passages = zip(*pairs, strict=True)
        # The longer of the two is cut: the passage, unless the query is longer than half of what the model reads.
        batch = self._tokenizer(
            list(queries),
            list(passages),
            padding=True,
            truncation="longest_first",
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        classes = self._model(**batch.to(self._device)).logits.float()  # (B, 1) or (B, 2)
        return (classes[:, -1] if classes.shape[1] == 1 else classes[:, 1] - classes[:, 0]).cpu().numpy()


class Reranker:
    """Puts the first `depth` hits of each query into the order of a cross-encoder; the others stay behind them.

    A reranked score is the sigmoid of the logit, 0 to 1, and that of the others is 0. Always the same number of hits is
    reranked, so that what a request finds depends neither on its topk nor on those that share its batch.
    """

    def __init__(self, model: CrossEncoder, depth: int) -> None:
        self.name = model.name
        self.depth = depth
        self._model = model

    def rerank(self, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
        """The hits of each query, best first; equal ones in the order in which they were found."""
        pairs = [
            (query, hit.passage.contents)
            for query, hits in zip(queries, found, strict=True)
            for hit in hits[: self.depth]
        ]
        logits = iter(self._model.logits(pairs).tolist())
        return [self._reranked(hits, [next(logits) for _ in hits[: self.depth]]) for hits in found]

    def _reranked(self, hits: Sequence[Hit], logits: list[float]) -> list[Hit]:
        order = sorted(range(len(logits)), key=lambda i: -logits[i])
        first = [Hit(hits[i].passage, float(1 / (1 + np.exp(-logits[i])))) for i in order]
        return first + [Hit(hit.passage, 0.0) for hit in hits[self.depth :]]
