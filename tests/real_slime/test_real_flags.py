"""Every flag that the training script passes is known to the real parsers, and its settings pass their validation."""

import json
from typing import Any

import pytest
from slime_job import Workplace, job_of

SETTINGS: dict[str, dict[str, str]] = {
    "defaults": {},
    "chat": {"LLM_API_MODE": "chat"},
    "google": {"SEARCH_BACKEND": "google", "GOOGLE_API_KEY": "unused"},
    "token router": {"TOKEN_TRACKING_MODE": "router_radix"},
    "no KL": {"USE_KL_LOSS": "0"},
    "logging": {"USE_WANDB": "1", "USE_TENSORBOARD": "1"},
    "group filter": {"GROUP_FILTER": "reward", "OVER_SAMPLING_BATCH_SIZE": "4", "PARTIAL_ROLLOUT": "1"},
    "evaluation sets": {"EVAL_INTERVAL": "20"},
    "truncated weights": {"CORRECTION": "tis"},
    "bounded weights": {"CORRECTION": "mis"},
    "checkpoints": {"SAVE_DIR": "/ckpt"},
    "several nodes": {"NUM_NODES": "2", "NUM_GPUS": "8", "RAY_ADDRESS": "http://10.0.0.1:8265"},
    "context parallel": {"NUM_GPUS": "8", "CONTEXT_PARALLEL": "2"},
}


def parsed(workplace: Workplace, *arguments: str, **variables: str) -> dict[str, Any]:
    """What the real parsers make of the script's command line."""
    data = {"PROMPT_DATA": str(workplace.prompt_data(variables.get("LLM_API_MODE", "generate")))}
    argv, environment = job_of(workplace.dry_run(*arguments, **data, **variables))
    del environment["PYTHONPATH"]
    return json.loads(workplace.python("unknown_flags.py", *argv, **environment).splitlines()[-1])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_slime_knows_every_flag_of_the_script(workplace: Workplace, settings: dict[str, str]) -> None:
    found = parsed(workplace, **settings)
    assert (found["unknown"], found["abbreviated"]) == ([], [])


def test_slime_evaluates_on_the_script_s_data(workplace: Workplace) -> None:
    data = str(workplace.prompt_data("generate"))
    args = parsed(workplace, EVAL_INTERVAL="20", EVAL_DATA=f"{data}@[0:4]")["args"]
    assert (args["eval_interval"], args["eval_temperature"]) == (20, 0.0)


def test_the_script_refuses_a_misspelt_flag_that_slime_would_drop_in_silence(workplace: Workplace) -> None:
    misspelt = ["--", "--learnig-rate", "1e-6"]
    assert parsed(workplace, *misspelt)["unknown"] == ["--learnig-rate"]
    refused = workplace.run("run_qwen2.5_3B.sh", "--check", *misspelt, PREFLIGHT="1")
    assert refused.returncode == 1
    assert "knows --learnig-rate" in refused.stdout
