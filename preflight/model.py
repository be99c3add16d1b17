"""Checks of the checkpoints: the Hugging Face folder, its Megatron form, and the folder that training saves to."""

import math
import os
import shlex
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
from preflight.findings import Finding, Mistake, doubtful, fine, mistake, one_line, skipped, wrong
from preflight.probe import run, unwritable
from preflight.setup import Setup, load_tokenizer

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


def read_model(setup: Setup) -> dict[str, Any]:
    """config.json of HF_CHECKPOINT. Raises Mistake if it is not the folder of a model that slime can train."""
    path = Path(setup["HF_CHECKPOINT"])
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.gguf"))):
        raise Mistake(f"HF_CHECKPOINT={path} is GGUF, which slime cannot train", DOWNLOAD.format("/root/MODEL"))
    if not path.is_dir():
        raise Mistake(f"there is no folder {path}", f"set HF_CHECKPOINT, or {DOWNLOAD.format(path)}")
    if is_megatron(path):
        remedy = "set it to the Hugging Face folder that this was converted from; the Megatron folder is REF_LOAD"
        raise Mistake(f"HF_CHECKPOINT={path} is a Megatron checkpoint", remedy)
    with mistake(f"set HF_CHECKPOINT to a model folder, or {DOWNLOAD.format(path)}", BadFile):
        return text_config(path)


def count_weights(setup: Setup) -> int:
    """The parameters in the weight files of HF_CHECKPOINT. Raises Mistake if they are not complete."""
    setup.need(read_model)
    path = Path(setup["HF_CHECKPOINT"])
    with mistake(f"the download is not complete: {DOWNLOAD.format(path)}", BadFile):
        return count_parameters(weight_files(path))


def folder(setup: Setup) -> Finding:
    config = setup.once(read_model)
    layers = config.get("num_hidden_layers", "?")
    return fine(f"{setup['HF_CHECKPOINT']}: {config.get('model_type', 'unknown')}, {layers} layers")


def weights(setup: Setup) -> Finding:
    return fine(f"complete; {setup.once(count_weights) / 1e9:.2f} billion parameters")


def tokenizer(setup: Setup) -> Finding:
    rows, loaded = setup.need(read_model).get("vocab_size", 0), setup.once(load_tokenizer)
    if len(loaded) > rows:
        found = f"the tokenizer knows {len(loaded)} tokens, but the model has embeddings for {rows}"
        return wrong(found, "use the tokenizer that belongs to the model")
    return fine(f"{type(loaded).__name__}, {len(loaded):,} tokens; the model has {rows:,}")


def model_arguments(setup: Setup) -> Finding:
    path, config = setup["MODEL_ARGS_FILE"], setup.need(read_model)
    given = read_model_args(path)
    if differences := list(_differences(given, config)):
        problem = f"{path} is for another model than HF_CHECKPOINT: {'; '.join(differences)}"
        return wrong(problem, "set MODEL_ARGS_FILE to the file in slime's scripts/models for this model")
    return fine(f"{Path(path).name} agrees with config.json in {sum(flag in given for flag in AGREEMENT)} numbers")


def read_model_args(path: str) -> dict[str, str]:
    """The flags in a file that sets MODEL_ARGS, with their values. Raises Mistake."""
    remedy = "set SLIME_DIR, or set MODEL_ARGS_FILE to a file in slime's scripts/models"
    if not Path(path).is_file():
        raise Mistake(f"there is no file {path}", remedy)
    command = ["bash", "-c", 'source "$1" >&2 && printf "%s\\0" "${MODEL_ARGS[@]}"', "bash", path]
    done = run(command, os.environ, BASH_TIMEOUT_S, remedy)
    words = done.stdout.split("\0")[:-1]
    if done.returncode or not any(words):
        raise Mistake(f"{path} sets no MODEL_ARGS {one_line(done.stderr)}".rstrip(), remedy)
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {word: "" if value.startswith("--") else value for word, value in pairs if word.startswith("--")}


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


def _resumes_from(setup: Setup) -> str:
    """The folder of the checkpoint that training resumes from; empty if it starts from REF_LOAD."""
    saved = setup["SAVE_DIR"]
    return setup["LOAD_DIR"] or (saved if saved and is_megatron(Path(saved)) else "")


def load(setup: Setup) -> Finding:
    path = _resumes_from(setup)
    if not path:
        return fine("starts from REF_LOAD")
    remedy = (
        "set LOAD_DIR to a folder with checkpoints that slime saved, or unset it; if the last checkpoint is "
        "incomplete, write the number of an older one into latest_checkpointed_iteration.txt"
    )
    with mistake(remedy, BadFile, found="cannot resume: "):
        return fine(f"resumes from iteration {megatron_iteration(Path(path))} in {path}")


def reference(setup: Setup) -> Finding:
    path = Path(setup["REF_LOAD"])
    if not setup.is_on("USE_KL_LOSS") and _resumes_from(setup):
        return skipped("not needed: training resumes, without KL loss")
    if not path.exists():
        return wrong(f"there is no {path} (REF_LOAD)", f"convert the model for Megatron:\n{conversion(setup)}")
    try:
        return fine(f"{path}, {megatron_iteration(path)}")
    except BadFile as error:
        if (path / "config.json").is_file():
            return doubtful(
                f"REF_LOAD={path} is a Hugging Face folder, which only slime's newest versions load",
                f"convert it for Megatron:\n{conversion(setup)}\n    export REF_LOAD={_target(setup)}",
            )
        return wrong(f"REF_LOAD is not a Megatron checkpoint: {error}", f"convert the model:\n{conversion(setup)}")


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
    """The folder that the conversion writes: REF_LOAD, unless that exists."""
    path = setup["REF_LOAD"]
    return path if not Path(path).exists() else f"{setup['HF_CHECKPOINT'].rstrip('/')}_torch_dist"


def save(setup: Setup) -> Finding:
    if not setup["SAVE_DIR"]:
        return doubtful("SAVE_DIR is not set: the trained model is not saved", "set SAVE_DIR to a folder")
    path = Path(setup["SAVE_DIR"])
    if problem := unwritable(path):
        return wrong(f"SAVE_DIR={path}: {problem}", "set SAVE_DIR to a folder that you may write")
    return fine(f"{path}, every {setup['SAVE_INTERVAL']} steps")


CHECKS = (folder, weights, tokenizer, model_arguments, reference, load, save)
