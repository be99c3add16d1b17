"""Exports an encoder to onnx/model.onnx in its folder, so that it runs on a CPU with onnxruntime, without torch.

    python local_dense_retriever/export_onnx.py /models/my-encoder

Most encoders on the Hugging Face hub already have that file. The export is compared with torch before it is written.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.encoder import ONNX_FILES
from local_dense_retriever.errors import InputError, needing, run_command

TEXTS = ["Who wrote Faust?", "The Rhine"]
MAX_DIFFERENCE = 1e-3  # between a token's states in torch and onnxruntime


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Hugging Face folder of an encoder: config, tokenizer and weights")
    args = parser.parse_args(argv)
    return run_command(lambda: print(f"wrote {export(args.folder)}"))


def export(folder: Path) -> Path:
    """Writes the file and returns its path. Raises InputError if this model cannot be exported."""
    with needing(f"making {ONNX_FILES[0]}", install="torch transformers onnx onnxruntime"):
        import onnx  # noqa: F401  torch needs it to export
        import onnxruntime
        import torch

        from local_dense_retriever.torch_encoder import TokenStates, load_model
    # onnxruntime optimises the pattern of eager attention.
    tokenizer, model, _ = load_model(str(folder), "cpu", attn_implementation="eager")
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    path = folder / ONNX_FILES[0]
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from the exporter's internals
            expected = model(**batch).last_hidden_state.numpy()
            torch.onnx.export(
                TokenStates(model, list(batch)),
                tuple(batch.values()),
                str(temporary),
                input_names=list(batch),
                output_names=["last_hidden_state"],
                dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*batch, "last_hidden_state")},
                opset_version=17,
                dynamo=False,
            )
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        (states,) = session.run(["last_hidden_state"], {name: tensor.numpy() for name, tensor in batch.items()})
        if not np.allclose(states, expected, atol=MAX_DIFFERENCE):
            raise InputError(f"onnxruntime and torch compute different vectors for {folder}: keep torch for this model")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
