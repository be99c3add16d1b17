"""Our series, logged by slime: its hooks, its loggers, its steps, its YAML. SLIME_DIR names a real one, as ever."""

import argparse
import importlib
import inspect
import os
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import Turn
from test_slime import Sample, rolling, unused_packages  # noqa: F401  (fixtures for this module, too)

from search_rollout.config import load_config

pytestmark = pytest.mark.filterwarnings("default")

OURS = "rollout/search_r1/exact_match"
TURNS = [Turn("<think>x</think><search>Kenya</search>"), Turn("<think>y</think><answer>Nairobi</answer>")]
ROOT = Path(__file__).resolve().parent.parent.parent


class Args(argparse.Namespace):
    """slime's args: None for whatever no test is about."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


def args_of(**changes):
    values = {
        "rollout_batch_size": 4,
        "n_samples_per_prompt": 2,
        "global_batch_size": 4,
        "advantage_estimator": "grpo",
        "custom_rollout_log_function_path": "generate_with_search.log_rollout",
        "custom_eval_rollout_log_function_path": "generate_with_search.log_eval_rollout",
    }
    return Args(**(values | changes))


def of_slime(*paths):
    """The first of slime's functions that is there."""
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise AssertionError(f"this slime has none of {paths}")


def log_of_slime(kind):
    """slime's function that logs a rollout or an evaluation, and calls our hook if it has such hooks."""
    name = f"log_{kind}_data"
    function = of_slime(f"slime.observability.rollout_metrics.{name}", f"slime.ray.rollout._{name}")
    if f"custom_{kind}_log_function_path" not in inspect.getsource(function):
        pytest.skip("this slime has no log hooks")
    return function


def logging_module():
    paths = ("slime.observability.logging_utils.log", "slime.utils.logging_utils.log", "slime.utils.tracking_utils.log")
    return sys.modules[of_slime(*paths).__module__]


@pytest.fixture
def to_wandb(monkeypatch):
    """What slime hands to W&B, entry by entry."""
    logged = []
    monkeypatch.setattr(logging_module(), "wandb", types.SimpleNamespace(log=logged.append))
    return logged


@pytest.fixture
async def samples(rolling):  # noqa: F811
    """A group of two that our hooks rolled out."""
    async with rolling(TURNS * 2) as (roll, _, _):
        samples = [await roll(), await roll()]
    for sample in samples:
        sample.group_index = 0
    return samples


@pytest.mark.parametrize(("by_train_step", "step"), [(False, 3), (True, 6)])  # 6: 3 rollouts x 4 x 2 / 4 samples
async def test_our_rollout_series_reach_wandb_with_slimes_own(samples, to_wandb, by_train_step, step):
    log = log_of_slime("rollout")
    log(3, args_of(use_wandb=True, wandb_always_use_train_step=by_train_step), samples, {"rollout/extra": 1.0}, 2.0)
    ours, own = to_wandb
    assert (ours[OURS], ours["rollout/search_r1/searches"], ours["rollout/search_r1/unrecorded"]) == (1.0, 1.0, 0.0)
    assert ours["rollout/search_r1/zero_variance_right"] == 1.0
    assert {"rollout/truncated_ratio", "rollout/extra", "perf/rollout_time"} <= set(own)
    assert ours["rollout/step"] == own["rollout/step"] == step
    assert set(ours) & set(own) == {"rollout/step"}


async def test_our_evaluation_series_reach_wandb_with_slimes_own(samples, to_wandb):
    data = {"nq_test": {"rewards": [1.0, 1.0], "truncated": [False, False], "samples": samples}}
    log_of_slime("eval_rollout")(3, args_of(use_wandb=True), data, None)
    ours, own = to_wandb
    assert ours["eval/nq_test/search_r1/exact_match"] == own["eval/nq_test"] == 1.0
    assert ours["eval/step"] == own["eval/step"] == 3
    assert set(ours) & set(own) == {"eval/step"}


async def test_both_are_in_the_files_that_slime_writes_for_tensorboard(samples, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from slime.utils.misc import SingletonMeta
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(SingletonMeta, "_instances", {})
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    log = log_of_slime("rollout")
    args = args_of(use_tensorboard=True, tb_project_name="project", tb_experiment_name="run")
    for rollout_id in range(2):
        log(rollout_id, args, samples, None, 2.0)
    logging_module()._TensorboardAdapter(args).finish()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in (OURS, "rollout/truncated_ratio"):
        assert [event.step for event in events.Scalars(name)] == [0, 1]
    assert [event.value for event in events.Scalars(OURS)] == [1.0, 1.0]


async def test_a_slime_without_log_hooks_logs_our_series_by_its_rollout_function(samples, to_wandb, monkeypatch):
    from slime.rollout import sglang_rollout

    if not hasattr(sglang_rollout, "generate_rollout"):
        pytest.skip("the stand-in has no rollout function")
    from slime.rollout.base_types import RolloutFnEvalOutput, RolloutFnTrainOutput, call_rollout_fn

    from generate_with_search import generate_rollout

    assert len(inspect.signature(sglang_rollout.generate_rollout).parameters) == 4
    outputs = iter([RolloutFnTrainOutput(samples=[samples]), RolloutFnEvalOutput(data={"nq": {"samples": samples}})])
    monkeypatch.setattr(sglang_rollout, "generate_rollout", lambda *_, evaluation: next(outputs))
    args = args_of(use_wandb=True)
    assert call_rollout_fn(generate_rollout, args, 5, None, evaluation=False).samples == [samples]
    assert call_rollout_fn(generate_rollout, args, 5, None, evaluation=True).data
    rollout, evaluation = to_wandb
    assert (rollout[OURS], rollout["rollout/step"]) == (1.0, 5)
    assert (evaluation["eval/nq/search_r1/exact_match"], evaluation["eval/step"]) == (1.0, 5)


def test_wandb_plots_our_prefixes_over_slimes_steps(monkeypatch):
    if not os.environ.get("SLIME_DIR"):
        pytest.skip("the stand-in does not set up W&B")
    paths = "slime.observability.wandb_utils._init_wandb_common", "slime.utils.wandb_utils._init_wandb_common"
    set_up = of_slime(*paths)
    axes = {}
    define = types.SimpleNamespace(define_metric=lambda name, step_metric=None: axes.update({name: step_metric}))
    monkeypatch.setattr(sys.modules[set_up.__module__], "wandb", define)
    set_up()
    assert (axes["rollout/*"], axes["eval/*"]) == ("rollout/step", "eval/step")


# --- slime's command line ---


@pytest.fixture
def parsed(tmp_path):
    """slime's args of a command line, with the YAML of --custom-config-path, as slime's own parser makes them."""
    if not os.environ.get("SLIME_DIR"):
        pytest.skip("the stand-in has no command line")
    from slime.utils.arguments import get_slime_extra_args_provider, slime_validate_args

    def run(argv, yaml=""):
        (tmp_path / "settings.yaml").write_text(yaml)
        argv = ["--custom-config-path", str(tmp_path / "settings.yaml"), "--num-rollout", "1", *argv]
        parser = get_slime_extra_args_provider()(argparse.ArgumentParser(allow_abbrev=False))
        args, unknown = parser.parse_known_args([*argv, "--rollout-batch-size", "4", "--actor-num-nodes", "1"])
        args = Args(**vars(args))
        args.global_batch_size = 4
        slime_validate_args(args)
        return args, unknown

    return run


def test_the_yaml_of_settings_becomes_args_that_our_settings_read(parsed):
    from generate_with_search import SEARCH_R1_CONFIGS

    args, _ = parsed([], "max_turns: 5\nsearch_backend: local\nretrieval_server_url: http://other:8000\n")
    config = load_config(SEARCH_R1_CONFIGS, {"SEARCH_BACKEND": "google"}, args)
    assert (config.max_turns, config.search_backend) == (5, "local")
    assert config.retrieval_urls == ["http://other:8000"]


def test_the_script_names_our_hooks_by_flags_that_this_slime_knows(parsed, tmp_path):
    (tmp_path / "model.sh").write_text("MODEL_ARGS=()\n")
    given = {"SLIME_DIR": os.environ["SLIME_DIR"], "MODEL_ARGS_FILE": str(tmp_path / "model.sh")}
    given |= {"NUM_GPUS": "2", "EVAL_INTERVAL": "5", "PYTHON": sys.executable, "PATH": os.environ["PATH"]}
    given |= {"PARTIAL_ROLLOUT": "1", "OVER_SAMPLING_BATCH_SIZE": "64"}
    command = [str(ROOT / "run_qwen2.5_3B.sh"), "--dry-run"]
    shown = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=True).stdout
    words = shown.replace("\\\n", " ").split()
    named = ("--custom-", "--rollout-function-path", "--dynamic-", "--rollout-all-", "--over-sampling-")
    ours = [word for flag, value in pairwise(words) if flag.startswith(named) for word in (flag, value)]
    ours += [word for word in words if word in ("--partial-rollout", "--log-multi-turn", "--log-passrate")]
    args, unknown = parsed(ours)
    assert unknown == []
    called = [args.custom_rollout_log_function_path, args.rollout_function_path]
    assert ("generate_with_search.log_rollout" in called) != ("generate_with_search.generate_rollout" in called)
    assert args.custom_generate_function_path == "generate_with_search.generate"
    assert args.dynamic_sampling_filter_path == "generate_with_search.keep_group"
    assert args.over_sampling_batch_size == 64 and args.partial_rollout and args.log_multi_turn and args.log_passrate
    if hasattr(args, "rollout_all_samples_process_path"):  # an attribute only where slime has the flag
        assert vars(args).get("rollout_all_samples_process_path") in (None, "generate_with_search.process_all_groups")
