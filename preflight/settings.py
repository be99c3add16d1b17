"""Checks of the settings of launch scripts and rollouts, and of their consistency."""

import dataclasses
import difflib
from pathlib import Path

from preflight.findings import Finding, doubtful, fine, skipped, wrong
from preflight.setup import Setup, read_config, read_custom_config
from search_rollout.config import SearchConfig, variables
from search_rollout.config import unknown_variables as find_unknown

PATHS = (
    "SLIME_DIR MEGATRON_DIR HF_CHECKPOINT REF_LOAD LOAD_DIR SAVE_DIR PROMPT_DATA EVAL_CONFIG EVAL_DATA "
    "CUSTOM_CONFIG_PATH TENSORBOARD_DIR"
).split()
CHOSEN_BY_ENVIRONMENT = ("llm_api_mode", "token_tracking_mode", "search_backend")  # the scripts do not read the YAML
REWARD_KEYS = ("reward_key", "eval_reward_key")


def launch_settings(setup: Setup) -> Finding:
    if setup.launch_error:
        return wrong(setup.launch_error, "correct it, or unset it to use the default")
    return fine(f"NUM_NODES={setup['NUM_NODES']}, NUM_GPUS={setup['NUM_GPUS']}, NUM_ROLLOUT={setup['NUM_ROLLOUT']}")


def yaml(setup: Setup) -> Finding:
    path, keys = setup["CUSTOM_CONFIG_PATH"], setup.once(read_custom_config)
    if not path:
        return skipped("CUSTOM_CONFIG_PATH is not set")
    known = [field.name for field in dataclasses.fields(SearchConfig)]
    ours = [key for key in keys if key in known]
    for key in set(keys) - set(ours):
        if near := difflib.get_close_matches(key, known, 1, cutoff=0.8):
            return doubtful(f"{path} has {key!r}, which is not a setting of the rollouts", f"did you mean {near[0]}?")
    named = ", ".join(ours) if len(ours) <= 6 else f"{len(ours)} settings"
    return fine(f"{path} sets {named or 'no setting of the rollouts'}")


def paths(setup: Setup) -> Finding:
    given = {name: setup[name] for name in PATHS}
    given["PYTHON"] = setup["PYTHON"] if "/" in setup["PYTHON"] else ""  # else it is looked up in PATH
    if relative := [f"{name}={path}" for name, path in given.items() if path and not Path(path).is_absolute()]:
        found = f"{', '.join(relative)}: relative to this folder, but Ray's workers may run in another one"
        return doubtful(found, "use absolute paths")
    return fine("all absolute")


def values(setup: Setup) -> Finding:
    config = setup.once(read_config)
    if setup.lacks_google_key:
        return fine("all valid, except for the missing key of web search: see the group search")
    return fine(f"all valid; {config.max_turns} turns, {config.topk} passages, {config.max_context_length} tokens")


def unknown_variables(setup: Setup) -> Finding:
    names = find_unknown(setup.environment)
    if not names:
        return fine("none")
    near = difflib.get_close_matches(names[0], list(variables().values()), 1)
    meant = f"did you mean {near[0]}?" if near else "unset it; docs/CONFIGURATION.md lists all settings"
    return doubtful(f"{', '.join(names)}: there is no such setting, so it has no effect", meant)


def modes(setup: Setup) -> Finding:
    for key in CHOSEN_BY_ENVIRONMENT:
        variable, field = variables()[key], SearchConfig.__dataclass_fields__[key]
        chosen = setup.environment.get(variable) or str(field.default)
        if key in setup.yaml and str(setup.yaml[key]) != chosen:
            return wrong(
                f"the YAML says {key}: {setup.yaml[key]}, the environment {variable}={chosen}; the scripts choose "
                "slime's arguments by the environment, but the rollouts follow the YAML",
                f"remove {key} from the YAML, and export {variable}={setup.yaml[key]}",
            )
    config = setup.config
    pair = f"{config.llm_api_mode} + {config.token_tracking_mode}, search {config.search_backend}"
    if (config.llm_api_mode, config.token_tracking_mode) == ("chat", "router_radix"):
        return doubtful(f"{pair}: works, but loses the structure of messages", "set TOKEN_TRACKING_MODE=router_handler")
    return fine(pair)


def context_length(setup: Setup) -> Finding:
    longest = setup.config.max_context_length
    fits = setup.number("MAX_TOKENS_PER_GPU") * setup.number("CONTEXT_PARALLEL")
    if longest > fits:
        return wrong(
            f"a trajectory may have {longest} tokens (max_context_length), but a GPU's micro batch only {fits} "
            f"(MAX_TOKENS_PER_GPU={setup['MAX_TOKENS_PER_GPU']} x CONTEXT_PARALLEL={setup['CONTEXT_PARALLEL']})",
            f"set max_context_length to {fits} or less, where it is set (SEARCH_R1_MAX_CONTEXT_LENGTH or the YAML), "
            "or raise the other two",
        )
    return fine(f"a trajectory of up to {longest} tokens fits a micro batch of {fits}")


def loss_mask(setup: Setup) -> Finding:
    if setup.config.loss_mask_mode == "strict":
        return fine("only the model's own tokens are trained")
    return doubtful("LOSS_MASK_MODE=simple also trains on retrieved documents", "set LOSS_MASK_MODE=strict")


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


def reward_key(setup: Setup) -> Finding:
    keys = [f"{key}: {setup.yaml[key]} in the YAML" for key in REWARD_KEYS if setup.yaml.get(key)]
    flags = {f"--{key.replace('_', '-')}" for key in REWARD_KEYS}
    keys += [argument for argument in setup.train_args if argument.partition("=")[0] in flags]
    if keys:
        found = f"{', '.join(keys)}: slime would look up this key in each reward, but our reward is a number"
        return wrong(found, "remove it; the parts of each reward are in sample.metadata")
    return fine("none, as for rewards that are numbers")


def batch(setup: Setup) -> Finding:
    prompts, group = setup.number("ROLLOUT_BATCH_SIZE"), setup.number("N_SAMPLES_PER_PROMPT")
    update = setup.number("GLOBAL_BATCH_SIZE")
    if group < 2:
        return wrong(
            f"N_SAMPLES_PER_PROMPT={group}: GRPO compares the samples of a prompt with each other, so it needs several",
            "set N_SAMPLES_PER_PROMPT to 8, or at least 2",
        )
    if update < 1 or prompts * group % update:
        return wrong(
            f"GLOBAL_BATCH_SIZE={update} does not divide the samples of a step: {prompts} prompts x {group} = "
            f"{prompts * group}",
            "unset GLOBAL_BATCH_SIZE for one update per step, or set it to a divisor",
        )
    return fine(f"{prompts} prompts x {group} samples; updates per step: {prompts * group // update}")


CHECKS = (
    *(launch_settings, paths, yaml, values, unknown_variables, modes),
    *(context_length, loss_mask, log_probs, reward_key, batch),
)
