"""Checks of the settings: those of the launch scripts, of the rollouts, and what they say about each other."""

import dataclasses
import difflib
from pathlib import Path

from preflight.findings import Check, Finding, doubtful, fine, skipped, wrong
from preflight.setup import Setup, read_yaml
from search_rollout.config import ConfigError, SearchConfig, unknown_variables, variables

PATHS = (
    "SLIME_DIR",
    "MEGATRON_DIR",
    "HF_CHECKPOINT",
    "REF_LOAD",
    "LOAD_DIR",
    "SAVE_DIR",
    "PROMPT_DATA",
    "EVAL_DATA",
    "CUSTOM_CONFIG_PATH",
    "TENSORBOARD_DIR",
)
CHOSEN_BY_ENVIRONMENT = ("llm_api_mode", "token_tracking_mode", "search_backend")  # the scripts do not read the YAML


def launch(setup: Setup) -> Finding:
    if setup.launch_error:
        return wrong(str(setup.launch_error), "correct it, or unset it to have the default")
    return fine(f"NUM_NODES={setup['NUM_NODES']}, NUM_GPUS={setup['NUM_GPUS']}, NUM_ROLLOUT={setup['NUM_ROLLOUT']}")


def yaml(setup: Setup) -> Finding:
    path = setup["CUSTOM_CONFIG_PATH"]
    if not path:
        return skipped("CUSTOM_CONFIG_PATH is not set")
    try:
        keys = read_yaml(path)
    except ValueError as error:
        return wrong(str(error), "correct the file, or CUSTOM_CONFIG_PATH")
    known = [field.name for field in dataclasses.fields(SearchConfig)]
    ours = [key for key in keys if key in known]
    for key in set(keys) - set(ours):
        if near := difflib.get_close_matches(key, known, 1, cutoff=0.8):
            return doubtful(f"{path} has {key!r}, which is no setting of the rollouts", f"do you mean {near[0]}?")
    named = ", ".join(ours) if len(ours) <= 6 else f"{len(ours)} settings"
    return fine(f"{path} sets {named or 'nothing of the rollouts'}")


def paths(setup: Setup) -> Finding:
    given = {name: setup[name] for name in PATHS}
    given["PYTHON"] = setup["PYTHON"] if "/" in setup["PYTHON"] else ""  # else it is looked up in PATH
    if relative := [f"{name}={path}" for name, path in given.items() if path and not Path(path).is_absolute()]:
        return doubtful(
            f"{', '.join(relative)}: relative to this folder, and Ray's workers may run in another one",
            "give whole paths",
        )
    return fine("all absolute")


def values(setup: Setup) -> Finding:
    if setup.lacks_google_key:
        return fine("all valid, but for the key of web search: see search")
    try:
        config = setup.load_config()
    except ConfigError as error:
        return wrong(str(error), "correct it: README.md, section Settings, has every value that is allowed")
    return fine(f"all valid; {config.max_turns} turns, {config.topk} passages, {config.max_context_length} tokens")


def unknown(setup: Setup) -> Finding:
    names = unknown_variables(setup.environment)
    if not names:
        return fine("none")
    near = difflib.get_close_matches(names[0], list(variables().values()), 1)
    meant = f"do you mean {near[0]}?" if near else "unset it; README.md, section Settings, has them all"
    return doubtful(f"{', '.join(names)}: no such setting, so it does nothing", meant)


def modes(setup: Setup) -> Finding:
    for key in CHOSEN_BY_ENVIRONMENT:
        variable, field = variables()[key], SearchConfig.__dataclass_fields__[key]
        chosen = setup.environment.get(variable) or str(field.default)
        if key in setup.yaml and str(setup.yaml[key]) != chosen:
            return wrong(
                f"the YAML says {key}: {setup.yaml[key]}, the environment {variable}={chosen}: the scripts choose "
                "slime's arguments by the environment, and the rollouts follow the YAML",
                f"take {key} out of the YAML, and export {variable}={setup.yaml[key]}",
            )
    config = setup.config
    pair = f"{config.llm_api_mode} + {config.token_tracking_mode}, search {config.search_backend}"
    if (config.llm_api_mode, config.token_tracking_mode) == ("chat", "router_radix"):
        return doubtful(f"{pair}: loses the structure of messages", "set TOKEN_TRACKING_MODE=router_handler")
    return fine(pair)


def context(setup: Setup) -> Finding:
    longest = setup.config.max_context_length
    fits = setup.number("MAX_TOKENS_PER_GPU") * setup.number("CONTEXT_PARALLEL")
    if longest > fits:
        return wrong(
            f"a trajectory may have {longest} tokens (max_context_length), and a GPU's micro batch {fits} "
            f"(MAX_TOKENS_PER_GPU={setup['MAX_TOKENS_PER_GPU']} x CONTEXT_PARALLEL={setup['CONTEXT_PARALLEL']})",
            f"set max_context_length to {fits} or less, where it is set (SEARCH_R1_MAX_CONTEXT_LENGTH or the YAML), "
            "or raise the other two",
        )
    return fine(f"a trajectory of up to {longest} tokens fits a micro batch of {fits}")


def loss_mask(setup: Setup) -> Finding:
    if setup.config.loss_mask_mode == "strict":
        return fine("only the model's own tokens are trained")
    return doubtful("LOSS_MASK_MODE=simple trains on retrieved documents too", "set LOSS_MASK_MODE=strict")


def log_probs(setup: Setup) -> Finding:
    if setup.config.track_log_probs:
        return fine("recorded with every sampled token")
    samples = setup.number("ROLLOUT_BATCH_SIZE") * setup.number("N_SAMPLES_PER_PROMPT")
    arguments = Path(setup["SLIME_DIR"]) / "slime" / "utils" / "arguments.py"
    since_v0_3 = arguments.is_file() and "--custom-advantage-function-path" in arguments.read_text(encoding="utf-8")
    if since_v0_3 and setup.number("GLOBAL_BATCH_SIZE") >= samples:
        return wrong(
            "TRACK_LOG_PROBS=false with one update a step: this slime's training fails without log-probabilities",
            f"set TRACK_LOG_PROBS=true, or GLOBAL_BATCH_SIZE to at most {samples // 2}",
        )
    return doubtful(
        "TRACK_LOG_PROBS=false: slime cannot compare rollout and training", "set TRACK_LOG_PROBS=true, or unset it"
    )


def batch(setup: Setup) -> Finding:
    prompts, group = setup.number("ROLLOUT_BATCH_SIZE"), setup.number("N_SAMPLES_PER_PROMPT")
    update = setup.number("GLOBAL_BATCH_SIZE")
    if group < 2:
        return wrong(
            f"N_SAMPLES_PER_PROMPT={group}: GRPO compares the samples of a prompt with each other, and there is one",
            "set N_SAMPLES_PER_PROMPT to 8, or at least 2",
        )
    if update < 1 or prompts * group % update:
        return wrong(
            f"GLOBAL_BATCH_SIZE={update} does not divide the samples of a step: {prompts} prompts x {group} = "
            f"{prompts * group}",
            "unset GLOBAL_BATCH_SIZE for one update a step, or give it a divisor",
        )
    return fine(f"{prompts} prompts x {group} samples, updates of a step: {prompts * group // update}")


CHECKS = (
    Check("launch settings", launch),
    Check("paths", paths),
    Check("YAML", yaml),
    Check("values", values),
    Check("unknown variables", unknown),
    Check("modes", modes),
    Check("context length", context),
    Check("loss mask", loss_mask),
    Check("log-probabilities", log_probs),
    Check("batch", batch),
)
