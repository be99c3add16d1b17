"""Chooses how a model is run.

On a GPU it runs with torch in fp16. On a CPU it runs in float32, with onnxruntime if the model's folder has
`onnx/model.onnx`, otherwise with torch. Most encoders on the Hugging Face hub have that file; export_onnx.py writes it.
"""

import importlib.util
from pathlib import Path

from local_dense_retriever.encoder import ONNX_FILES, STYLES, Encoder
from local_dense_retriever.errors import needing
from local_dense_retriever.machine import gpus


def load_encoder(name: str, model: str, *, batch_size: int | None = None, device: str | None = None) -> Encoder:
    """The encoder for this machine: see the top of this file.

    `model` is a local folder, loaded without any access to the hub, or a name on the Hugging Face hub. `device` is
    torch's name of one; None takes the first GPU, or the CPU. Raises InputError if something is wrong or missing.
    """
    if name in STYLES and device is None and not gpus() and (folder := onnx_folder(model)):
        from local_dense_retriever.onnx_encoder import OnnxEncoder

        return OnnxEncoder(name, folder, batch_size)
    remedy = f"torch transformers, or on a CPU onnxruntime tokenizers with a --retriever_model that has {ONNX_FILES[0]}"
    with needing(f"the encoder {model}", install=remedy):
        from local_dense_retriever.torch_encoder import TorchEncoder
    return TorchEncoder(name, model, batch_size, device)


def onnx_folder(model: str) -> Path | None:
    """The folder with a model's ONNX_FILES, from the hub if need be; None if one is missing, or onnxruntime is."""
    if not all(importlib.util.find_spec(package) for package in ("onnxruntime", "tokenizers")):
        return None
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        try:
            folder = Path(snapshot_download(model, allow_patterns=list(ONNX_FILES)))
        except (HFValidationError, OSError):  # loading with torch fails for the same reason and reports it
            return None
    return folder if all((folder / file).is_file() for file in ONNX_FILES) else None
