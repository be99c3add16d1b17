"""Runs encoders on a CPU with onnxruntime in float32: no torch needed, and two to three times as fast."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from local_dense_retriever.encoder import ONNX_FILES, Encoder, pool
from local_dense_retriever.errors import InputError


class OnnxEncoder(Encoder):
    """The ONNX model in a folder with ONNX_FILES. Call it from one thread."""

    usual_batch_size = 16  # small batches need less padding, and a call is cheap

    def __init__(self, name: str, folder: Path, batch_size: int | None = None) -> None:
        """Loads the model. Raises InputError if a file is damaged, or not of a text encoder."""
        super().__init__(name, batch_size)
        model, tokenizer, _ = (str(folder / file) for file in ONNX_FILES)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        # Threads that spin while they wait would take cores from others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_file(tokenizer)
        except Exception as error:  # each library has its own types; tokenizers raises plain Exception
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"cannot load the encoder {folder} ({reason}): make {ONNX_FILES[0]} again") from error
        self._inputs = [given.name for given in self._session.get_inputs()]
        states = self._session.get_outputs()[0]
        if not {"input_ids", "attention_mask"} <= set(self._inputs) or len(states.shape) != 3:
            raise InputError(f"{model} is not a text encoder: its first output is not one state per token")
        self._states = states.name
        self.dim = int(states.shape[2])
        self._tokenizer.no_padding()

    def _encode_batch(self, texts: list[str], max_tokens: int) -> NDArray[np.float32]:
        self._tokenizer.enable_truncation(max_tokens)
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        ids = np.zeros((len(encoded), max(map(len, encoded))), np.int64)  # (B, T)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run([self._states], {name: known[name] for name in self._inputs})  # (B, T, D)
        pooled = pool(hidden, mask.astype(np.float32), self.style.pooling)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
