"""Reranks with a cross-encoder, which reads query and passage together: better than vectors, but one pass per pair."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from local_dense_retriever.encoder import batches
from local_dense_retriever.errors import InputError
from local_dense_retriever.machine import visible_devices
from local_dense_retriever.searcher import Hit
from local_dense_retriever.torch_encoder import load_model

MAX_PAIR_TOKENS = 512
BATCH_PAIRS = 32


class CrossEncoder:
    """A sequence classifier, in fp16 on a GPU if there is one, else in fp32 on the CPU. Call it from one thread."""

    def __init__(self, model: str) -> None:
        """Loads the weights. Raises InputError if that fails, or if the model is not a cross-encoder."""
        self.name = model
        self._device = visible_devices()[0]
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # else it lists missing and surplus weights
        try:
            kind = AutoModelForSequenceClassification
            self._tokenizer, self._model, missing = load_model(model, self._device, kind, "--reranker")
        finally:
            transformers_logging.set_verbosity(verbosity)
        config = self._model.config
        if missing:  # transformers initialises them at random
            raise InputError(f"--reranker {model} is not a cross-encoder: its weights have no classification head")
        if config.num_labels > 2:
            raise InputError(f"--reranker {model} has {config.num_labels} classes: a cross-encoder has 1 or 2")
        positions = getattr(config, "max_position_embeddings", MAX_PAIR_TOKENS)
        self._max_tokens = min(MAX_PAIR_TOKENS, self._tokenizer.model_max_length, positions)

    def logits(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """(N,), one per pair of query and passage: larger is a better match; -inf if the model returns NaN."""
        logits = np.empty(len(pairs))
        for rows in batches([sum(map(len, pair)) for pair in pairs], BATCH_PAIRS):
            logits[rows] = self._batch_logits([pairs[i] for i in rows])
        return np.where(np.isnan(logits), -np.inf, logits)

    @torch.inference_mode()
    def _batch_logits(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        queries, passages = zip(*pairs, strict=True)
        # Truncates the longer text: the passage, unless the query fills more than half of the model's input.
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
    """Sorts the first `depth` hits of each query by a cross-encoder; the others follow in their old order.

    A reranked score is the sigmoid of the logit, 0 to 1; the others score 0. The number of reranked hits is fixed, so a
    request's result depends neither on its topk nor on the other requests in its batch.
    """

    def __init__(self, model: CrossEncoder, depth: int) -> None:
        self.name = model.name
        self.depth = depth
        self._model = model

    def rerank(self, queries: Sequence[str], found: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
        """The hits of each query, best first; ties keep their order."""
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
