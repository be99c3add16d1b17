"""Checks of the checkpoints: the Hugging Face folder, its Megatron form, and where training saves."""

import math
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preflight.checkpoint_files import (
    BadFile,
    count_parameters,
    is_megatron,
    megatron_iteration,
    text_config,
    weight_files,
)
from preflight.findings import Blocked, Check, Finding, doubtful, fine, one_line, skipped, wrong
from preflight.setup import Setup

DOWNLOAD = "download it, for example:\n    hf download Qwen/Qwen2.5-3B-Instruct --local-dir {}"
AGREEMENT = {  # Megatron's argument -> config.json's key
    "--num-layers": "num_hidden_layers",
    "--hidden-size": "hidden_size",
    "--ffn-hidden-size": "intermediate_size",
    "--num-attention-heads": "num_attention_heads",
    "--num-query-groups": "num_key_value_heads",
    "--kv-channels": "head_dim",
    "--vocab-size": "vocab_size",
    "--rotary-base": "rope_theta",
    "--norm-epsilon": "rms_norm_eps",
}
BASH_TIMEOUT_S = 10.0


def folder(setup: Setup) -> Finding:
    path = Path(setup["HF_CHECKPOINT"])
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.gguf"))):
        return wrong(f"HF_CHECKPOINT={path} is GGUF, which slime cannot train", DOWNLOAD.format("/root/MODEL"))
    if not path.is_dir():
        return wrong(f"there is no folder {path}", f"set HF_CHECKPOINT, or {DOWNLOAD.format(path)}")
    if is_megatron(path):
        return wrong(
            f"HF_CHECKPOINT={path} is a Megatron checkpoint",
            "give the Hugging Face folder that it was converted from; the Megatron one is REF_LOAD",
        )
    try:
        config = text_config(path)
    except BadFile as error:
        return wrong(str(error), f"set HF_CHECKPOINT to a model's folder, or {DOWNLOAD.format(path)}")
    return fine(f"{path}: {config.get('model_type', 'unknown')}, {config.get('num_hidden_layers', '?')} layers")


def weights(setup: Setup) -> Finding:
    path = Path(setup["HF_CHECKPOINT"])
    if not (path / "config.json").is_file():
        raise Blocked("HF_CHECKPOINT is no model's folder")
    try:
        files = weight_files(path)
        numbers = count_parameters(files)
    except BadFile as error:
        return wrong(str(error), f"the download is not complete: {DOWNLOAD.format(path)}")
    return fine(f"whole; {numbers / 1e9:.2f} billion parameters")


def tokenizer(setup: Setup) -> Finding:
    path = Path(setup["HF_CHECKPOINT"])
    if not (path / "config.json").is_file():
        raise Blocked("HF_CHECKPOINT is no model's folder")
    try:
        loaded = setup.load_tokenizer()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # OSError, ValueError, tokenizers' own, … by what is wrong with the files
        return wrong(
            f"the tokenizer of {path} cannot be loaded: {one_line(error)}",
            "copy the model's tokenizer files there (tokenizer.json, tokenizer_config.json)",
        )
    rows = text_config(path).get("vocab_size", 0)
    if len(loaded) > rows:
        return wrong(
            f"the tokenizer knows {len(loaded)} tokens, and the model has embeddings for {rows}",
            "use the tokenizer that belongs to the model",
        )
    return fine(f"{type(loaded).__name__}, {len(loaded):,} tokens; the model has {rows:,}")


def model_args(setup: Setup) -> Finding:
    path, given = setup["MODEL_ARGS_FILE"], {}
    try:
        config = text_config(Path(setup["HF_CHECKPOINT"]))
    except BadFile as error:
        raise Blocked("HF_CHECKPOINT is no model's folder") from error
    try:
        given = read_model_args(path)
    except BadFile as error:
        return wrong(str(error), "set SLIME_DIR, or MODEL_ARGS_FILE to one of slime's scripts/models")
    if differences := list(_differences(given, config)):
        return wrong(
            f"{path} is of another model than HF_CHECKPOINT: {'; '.join(differences)}",
            "set MODEL_ARGS_FILE to the file of slime's scripts/models that belongs to this model",
        )
    return fine(f"{Path(path).name} agrees with config.json in {sum(flag in given for flag in AGREEMENT)} numbers")


def read_model_args(path: str) -> dict[str, str]:
    """The flags of a file that sets MODEL_ARGS, with their values. Raises BadFile."""
    if not Path(path).is_file():
        raise BadFile(f"there is no file {path}")
    command = ["bash", "-c", 'source "$1" >&2 && printf "%s\\0" "${MODEL_ARGS[@]}"', "bash", path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=BASH_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise BadFile(f"{path} takes more than {BASH_TIMEOUT_S:.0f} s in bash") from error
    words = os.fsdecode(done.stdout).split("\0")[:-1]
    if done.returncode or not any(words):
        raise BadFile(f"{path} sets no MODEL_ARGS {one_line(os.fsdecode(done.stderr))}".rstrip())
    flags: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            flags[word] = "" if following.startswith("--") else following
    return flags


def _differences(given: dict[str, str], config: dict[str, Any]) -> Iterator[str]:
    rope = config.get("rope_parameters")
    values = {**config, **(rope if isinstance(rope, dict) else {})}
    for flag, key in AGREEMENT.items():
        if flag in given and isinstance(values.get(key), int | float):
            try:
                same = math.isclose(float(given[flag]), float(values[key]), rel_tol=1e-5)
            except ValueError:
                same = False
            if not same:
                yield f"{flag} {given[flag]}, but {key} {values[key]}"
    tied = config.get("tie_word_embeddings")
    if isinstance(tied, bool) and tied == ("--untie-embeddings-and-output-weights" in given):
        has = "has" if tied else "lacks"
        yield f"it {has} --untie-embeddings-and-output-weights, but tie_word_embeddings is {str(tied).lower()}"


def load(setup: Setup) -> Finding:
    given, saved = setup["LOAD_DIR"], setup["SAVE_DIR"]
    try:
        if given:
            return fine(f"goes on from iteration {megatron_iteration(Path(given))} of {given}")
        if saved and is_megatron(Path(saved)):
            return fine(f"goes on from iteration {megatron_iteration(Path(saved))} of {saved}")
    except BadFile as error:
        return wrong(
            f"nothing can be gone on from: {error}",
            "set LOAD_DIR to a folder that slime saved checkpoints in, or unset it; a checkpoint that was cut off: "
            "write the number of an older one into latest_checkpointed_iteration.txt",
        )
    return fine("begins anew, from REF_LOAD")


def reference(setup: Setup) -> Finding:
    path = Path(setup["REF_LOAD"])
    begins = not any(setup[name] and is_megatron(Path(setup[name])) for name in ("LOAD_DIR", "SAVE_DIR"))
    if not setup.is_on("USE_KL_LOSS") and not begins:
        return skipped("not needed: no KL loss, and a checkpoint to go on from")
    if not path.exists():
        return wrong(f"there is no {path} (REF_LOAD)", f"convert the model for Megatron:\n{conversion(setup)}")
    try:
        name = megatron_iteration(path)
    except BadFile as error:
        if (path / "config.json").is_file():
            return doubtful(
                f"REF_LOAD={path} is a Hugging Face folder, which only slime's newest versions load",
                f"convert it for Megatron:\n{conversion(setup)}\n    export REF_LOAD={_target(setup)}",
            )
        return wrong(f"REF_LOAD is no Megatron checkpoint: {error}", f"convert the model:\n{conversion(setup)}")
    return fine(f"{path}, {name}")


def conversion(setup: Setup) -> str:
    """slime's command that converts HF_CHECKPOINT, as lines of a remedy."""
    slime, megatron, python = (shlex.quote(setup[name]) for name in ("SLIME_DIR", "MEGATRON_DIR", "PYTHON"))
    return (
        f"    source {shlex.quote(setup['MODEL_ARGS_FILE'])}\n"
        f"    PYTHONPATH={megatron}:{slime} {python} {slime}/tools/convert_hf_to_torch_dist.py \\\n"
        f'      "${{MODEL_ARGS[@]}}" --hf-checkpoint {shlex.quote(setup["HF_CHECKPOINT"])} \\\n'
        f"      --save {shlex.quote(_target(setup))}"
    )


def _target(setup: Setup) -> str:
    """Where the conversion writes: REF_LOAD, unless that is there already."""
    path = setup["REF_LOAD"]
    return path if not Path(path).exists() else f"{setup['HF_CHECKPOINT'].rstrip('/')}_torch_dist"


def save(setup: Setup) -> Finding:
    if not setup["SAVE_DIR"]:
        return doubtful("SAVE_DIR is not set: nothing that is trained is kept", "set SAVE_DIR to a folder")
    path = Path(setup["SAVE_DIR"])
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "is no folder" if not there.is_dir() else "cannot be written"
        return wrong(f"SAVE_DIR={path}: {there} {problem}", "set SAVE_DIR to a folder that you may write")
    return fine(f"{path}, every {setup['SAVE_INTERVAL']} steps")


CHECKS = (
    Check("folder", folder),
    Check("weights", weights),
    Check("tokenizer", tokenizer),
    Check("model arguments", model_args),
    Check("reference", reference),
    Check("load", load),
    Check("save", save),
)
