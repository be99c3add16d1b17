"""run_qwen2.5_3B.sh: what it tells slime, and that it stops what it started and nothing else."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launch_helpers import Checkout, answers, eventually, flags_of, interrupt
from preflight_helpers import Machine, retriever_server

from search_rollout.config import CHOICES, secret_keys, variables

RUN = "run_qwen2.5_3B.sh"
SPECIFIED = {  # by the README's "Key parameters", and by the issue
    "--advantage-estimator": "grpo",
    "--use-kl-loss": "",
    "--kl-loss-coef": "0.00",
    "--eps-clip": "0.2",
    "--eps-clip-high": "0.28",
    "--balance-data": "",
    "--sglang-mem-fraction-static": "0.7",
    "--rollout-batch-size": "32",
    "--n-samples-per-prompt": "8",
    "--global-batch-size": "256",
    "--rollout-max-response-len": "512",
    "--use-dynamic-batch-size": "",
    "--max-tokens-per-gpu": "9216",
    "--custom-generate-function-path": "generate_with_search.generate",
    "--custom-rm-path": "generate_with_search.reward_func",
    "--custom-reward-post-process-path": "generate_with_search.reward_post_process",
    "--custom-rollout-log-function-path": "generate_with_search.log_rollout",
    "--custom-eval-rollout-log-function-path": "generate_with_search.log_eval_rollout",
    "--dynamic-sampling-filter-path": "generate_with_search.keep_group",
    "--rollout-all-samples-process-path": "generate_with_search.process_all_groups",
    "--log-multi-turn": "",
    "--log-passrate": "",
    "--router-policy": "consistent_hashing",
    "--prompt-data": "/root/nq_search/train.parquet",
    "--label-key": "reward_model",
    "--get-mismatch-metrics": "",
    "--custom-tis-function-path": "generate_with_search.mismatch_figures",
    "--num-layers": "36",  # from the file of slime that sets MODEL_ARGS
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def job(checkout: Checkout, *arguments: str, **variables: str) -> tuple[dict[str, str], dict[str, str]]:
    """The flags of train.py and the variables of the job, as a dry run shows them."""
    run = checkout.run(RUN, "--dry-run", *arguments, **variables)
    assert run.returncode == 0, run.stderr
    argv = shlex.split(run.stdout.replace("\\\n", " "))
    argv = argv[argv.index("submit") :]
    runtime_env = json.loads(argv[argv.index("--runtime-env-json") + 1])
    return flags_of(argv[argv.index("--") + 1 :]), runtime_env["env_vars"]


def error_of(checkout: Checkout, *arguments: str, **variables: str) -> str:
    """The one sentence of a check that fails."""
    run = checkout.run(RUN, "--check", *arguments, **variables)
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    return errors[0]


# --- what train.py is told ---


def test_slime_gets_the_arguments_that_the_readme_specifies(checkout: Checkout) -> None:
    flags, _ = job(checkout)
    assert {name: flags.get(name) for name in SPECIFIED} == SPECIFIED


def test_generate_mode_applies_the_chat_template_and_samples_at_0_8(checkout: Checkout) -> None:
    flags, _ = job(checkout)
    assert "--apply-chat-template" in flags and "--tool-key" not in flags
    assert flags["--rollout-temperature"] == "0.8"
    assert "--apply-chat-template" not in job(checkout, APPLY_CHAT_TEMPLATE="0")[0]


def test_chat_mode_leaves_messages_unchanged_and_samples_at_1(checkout: Checkout) -> None:
    flags, environment = job(checkout, LLM_API_MODE="chat")
    assert "--apply-chat-template" not in flags and flags["--tool-key"] == "tools"
    assert flags["--rollout-temperature"] == "1.0"
    assert environment["LLM_API_MODE"] == "chat"


def test_every_path_and_number_can_be_given(checkout: Checkout) -> None:
    wanted = {
        "HF_CHECKPOINT": ("--hf-checkpoint", "/models/my model"),
        "REF_LOAD": ("--ref-load", "/models/ref"),
        "LOAD_DIR": ("--load", "/old"),
        "SAVE_DIR": ("--save", "/new"),
        "SAVE_INTERVAL": ("--save-interval", "7"),
        "PROMPT_DATA": ("--prompt-data", "/my data.parquet"),
        "NUM_NODES": ("--actor-num-nodes", "3"),
        "NUM_GPUS": ("--actor-num-gpus-per-node", "4"),
        "TENSOR_PARALLEL": ("--tensor-model-parallel-size", "4"),
        "ROLLOUT_GPUS_PER_ENGINE": ("--rollout-num-gpus-per-engine", "1"),
        "SGLANG_MEM_FRACTION_STATIC": ("--sglang-mem-fraction-static", "0.6"),
        "NUM_ROLLOUT": ("--num-rollout", "5"),
        "ROLLOUT_BATCH_SIZE": ("--rollout-batch-size", "16"),
        "N_SAMPLES_PER_PROMPT": ("--n-samples-per-prompt", "4"),
        "OVER_SAMPLING_BATCH_SIZE": ("--over-sampling-batch-size", "24"),
        "PARTIAL_ROLLOUT": ("--partial-rollout", ""),
        "ROUTER_POLICY": ("--router-policy", "cache_aware"),
        "KL_LOSS_COEF": ("--kl-loss-coef", "0.001"),
        "EPS_CLIP": ("--eps-clip", "0.1"),
        "EPS_CLIP_HIGH": ("--eps-clip-high", "0.3"),
        "LEARNING_RATE": ("--lr", "2e-6"),
        "ROLLOUT_TEMPERATURE": ("--rollout-temperature", "0.9"),
        "ROLLOUT_MAX_RESPONSE_LEN": ("--rollout-max-response-len", "700"),
    }
    flags, _ = job(checkout, **{name: value or "1" for name, (_, value) in wanted.items()})
    assert {flag: flags[flag] for flag, _ in wanted.values()} == dict(wanted.values())
    assert flags["--global-batch-size"] == "64"  # 16 x 4: one update a step, unless it is given


def test_no_prompt_is_generated_beyond_the_batch_unless_asked_for(checkout: Checkout) -> None:
    flags, _ = job(checkout)
    assert "--over-sampling-batch-size" not in flags and "--partial-rollout" not in flags


@pytest.mark.parametrize("variables", [{"GROUP_FILTER": "reward"}, {"OVER_SAMPLING_BATCH_SIZE": "64"}])
def test_a_surplus_that_is_thrown_away_is_reported(checkout: Checkout, variables: dict[str, str]) -> None:
    assert "PARTIAL_ROLLOUT=1 resumes it" in checkout.run(RUN, "--dry-run", **variables).stderr
    assert "PARTIAL_ROLLOUT=1" not in checkout.run(RUN, "--dry-run", PARTIAL_ROLLOUT="1", **variables).stderr
    assert "PARTIAL_ROLLOUT=1" not in checkout.run(RUN, "--dry-run").stderr


def test_less_than_a_batch_cannot_be_over_sampling(checkout: Checkout) -> None:
    assert "OVER_SAMPLING_BATCH_SIZE=31 is less than ROLLOUT_BATCH_SIZE=32" in error_of(
        checkout, OVER_SAMPLING_BATCH_SIZE="31"
    )
    assert "must be a whole number" in error_of(checkout, OVER_SAMPLING_BATCH_SIZE="many")


def test_arguments_unknown_to_an_older_slime_are_left_out_with_a_line_each(checkout: Checkout) -> None:
    checkout.slime_arguments.write_text('parser.add_argument("--log-passrate")\n')
    checkout.slime_rollout.unlink()
    run = checkout.run(RUN, "--dry-run")
    notes = [line for line in run.stderr.splitlines() if "left out" in line]
    assert notes == [
        "note: this slime sends no session keys: --router-policy is left out.",
        "note: this slime has no --dynamic-sampling-filter-path: it is left out.",
        "note: this slime has no --rollout-all-samples-process-path: it is left out.",
        "note: this slime has no --log-multi-turn: it is left out.",
    ]
    for note in notes:
        assert f"{note.partition('--')[2].partition(':')[0].split()[0]} " not in run.stdout


def test_a_policy_that_the_installed_router_would_refuse_is_left_out(checkout: Checkout) -> None:
    checkout.install_router("round_robin", "manual")
    run = checkout.run(RUN, "--dry-run")
    assert "--router-policy" not in run.stdout
    assert "sglang-router has no policy consistent_hashing (round_robin manual)" in run.stderr
    assert job(checkout, ROUTER_POLICY="manual")[0]["--router-policy"] == "manual"


def test_a_router_that_cannot_be_queried_gets_the_policy(checkout: Checkout) -> None:
    (checkout.path / "sglang_router" / "launch_router.py").write_text("raise ImportError\n")
    assert job(checkout)[0]["--router-policy"] == "consistent_hashing"


def test_our_own_router_gets_no_policy(checkout: Checkout) -> None:
    assert "--router-policy" not in job(checkout, TOKEN_TRACKING_MODE="router_radix")[0]


def test_arguments_after_two_dashes_come_last_and_win(checkout: Checkout) -> None:
    flags, _ = job(checkout, "--", "--lr", "5e-7", "--rollout-stop", "a b")
    assert flags["--lr"] == "5e-7" and flags["--rollout-stop"] == "a b"


def test_without_the_kl_loss_no_reference_model_is_asked_for(checkout: Checkout) -> None:
    flags, _ = job(checkout, USE_KL_LOSS="0")
    assert "--use-kl-loss" not in flags


def test_evaluation_is_off_until_an_interval_is_set(checkout: Checkout) -> None:
    assert [flag for flag in job(checkout)[0] if "eval" in flag] == ["--custom-eval-rollout-log-function-path"]
    flags, _ = job(checkout, EVAL_INTERVAL="25", EVAL_CONFIG="/my sets.yaml")
    assert (flags["--eval-interval"], flags["--eval-config"]) == ("25", "/my sets.yaml")
    assert flags["--eval-temperature"] == "0" and "--eval-prompt-data" not in flags


def test_one_evaluation_file_can_stand_for_the_sets(checkout: Checkout) -> None:
    flags, _ = job(checkout, EVAL_INTERVAL="25", EVAL_DATA="/my test.parquet@[0:9]")
    assert flags["--eval-prompt-data"] == "nq_test /my test.parquet@[0:9]" and "--eval-config" not in flags


def test_an_older_slime_without_evaluation_sets_is_reported_in_one_line(checkout: Checkout) -> None:
    checkout.slime_evaluation.write_text("    custom_generate_function_path: str\n")
    run = checkout.run(RUN, "--dry-run", EVAL_INTERVAL="25")
    assert run.stderr.count("note: this slime's eval/SET is the training reward") == 1
    assert "--eval-config" in run.stdout
    checkout.slime_evaluation.unlink()
    run = checkout.run(RUN, "--dry-run", EVAL_INTERVAL="25")
    assert "note: no evaluation" in run.stderr and "--eval-" not in run.stdout
    assert job(checkout, EVAL_INTERVAL="25", EVAL_DATA="/test.parquet")[0]["--eval-prompt-data"]


def test_corrections_are_off_until_one_is_chosen(checkout: Checkout) -> None:
    assert "--use-tis" not in job(checkout)[0]
    flags, _ = job(checkout, CORRECTION="tis")
    assert "--use-tis" in flags and "--custom-tis-function-path" not in flags
    flags, _ = job(checkout, CORRECTION="mis")
    assert flags["--custom-tis-function-path"] == "slime.backends.megatron_utils.loss.icepop_function"
    assert (flags["--tis-clip-low"], flags["--tis-clip"]) == ("0.5", "2.0")
    assert "CORRECTION has value 'TIS'; it must be none, tis or mis." in error_of(checkout, CORRECTION="TIS")


def test_figures_of_the_mismatch_can_be_left_out(checkout: Checkout) -> None:
    flags, _ = job(checkout, MISMATCH_FIGURES="0")
    assert "--get-mismatch-metrics" not in flags and "--custom-tis-function-path" not in flags


@pytest.mark.parametrize("setting", [{"TRACK_LOG_PROBS": "false"}, {"LOSS_MASK_MODE": "simple"}, "track_log_probs: no"])
def test_without_the_rollouts_log_probabilities_there_is_no_figure_and_no_correction(
    checkout: Checkout, tmp_path: Path, setting: dict[str, str] | str
) -> None:
    if isinstance(setting, str):
        (tmp_path / "own.yaml").write_text(setting)
        setting = {"CUSTOM_CONFIG_PATH": str(tmp_path / "own.yaml")}
    run = checkout.run(RUN, "--dry-run", **setting)
    assert "note: no mismatch figures" in run.stderr and "--get-mismatch-metrics" not in run.stdout
    assert "CORRECTION=tis needs the rollouts' log-probabilities" in error_of(checkout, CORRECTION="tis", **setting)


def test_a_slime_without_the_functions_gets_no_figures_and_one_line_says_so(checkout: Checkout) -> None:
    checkout.slime_losses.write_text("        def vanilla_tis_function(\n")  # inside another, as v0.2.0 has it
    run = checkout.run(RUN, "--dry-run")
    assert "note: no mismatch figures: this slime" in run.stderr and "--get-mismatch-metrics" not in run.stdout
    run = checkout.run(RUN, "--dry-run", CORRECTION="mis")
    assert "note: CORRECTION=mis is left out" in run.stderr and "--use-tis" not in run.stdout
    assert "--use-tis" in job(checkout, CORRECTION="tis")[0]


def test_wandb_and_tensorboard_are_opt_in(checkout: Checkout) -> None:
    assert not [flag for flag in job(checkout)[0] if "wandb" in flag or "tensorboard" in flag]
    flags, environment = job(checkout, USE_WANDB="1", USE_TENSORBOARD="true", RUN_NAME="try", TENSORBOARD_DIR="/tb")
    assert flags["--wandb-group"] == flags["--tb-experiment-name"] == "try"
    assert re.fullmatch(r"/tb/slime-search-r1/try/\d{8}-\d{6}", environment["TENSORBOARD_DIR"])


@pytest.mark.parametrize("arguments", ['parser.add_argument("--custom-config-path")', None])
def test_a_slime_that_has_no_log_hooks_gets_our_series_by_its_rollout_function(
    checkout: Checkout, arguments: str | None
) -> None:
    checkout.slime_arguments.unlink()
    if arguments:
        checkout.slime_arguments.write_text(arguments)
    flags, _ = job(checkout)
    assert not [flag for flag in flags if "log-function" in flag]
    assert flags["--rollout-function-path"] == "generate_with_search.generate_rollout"


def test_a_yaml_of_settings_is_passed_on(checkout: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "my settings.yaml"
    assert "CUSTOM_CONFIG_PATH" in error_of(checkout, CUSTOM_CONFIG_PATH=str(path))
    path.touch()
    assert job(checkout, CUSTOM_CONFIG_PATH=str(path))[0]["--custom-config-path"] == str(path)


def test_router_modes_pass_the_router_and_manual_mode_passes_none(checkout: Checkout) -> None:
    assert "--sglang-router-ip" not in job(checkout)[0]
    url = {"TOKEN_ROUTER_URL": "http://10.0.0.1:31000/"}
    flags, _ = job(checkout, TOKEN_TRACKING_MODE="router_radix", **url)
    assert (flags["--sglang-router-ip"], flags["--sglang-router-port"]) == ("10.0.0.1", "31000")


def test_trajectories_fit_a_gpus_tokens(checkout: Checkout) -> None:
    name = "SEARCH_R1_MAX_CONTEXT_LENGTH"
    assert job(checkout)[1][name] == "9216"
    assert job(checkout, MAX_TOKENS_PER_GPU="20000")[1][name] == "16384"  # the setting's own default
    assert job(checkout, **{name: "4096"})[1][name] == "4096"
    assert "MAX_TOKENS_PER_GPU" in error_of(checkout, **{name: "16384"})


def test_the_tables_context_length_is_used_if_it_fits_and_else_a_note_says_so(checkout: Checkout) -> None:
    name, plugin = "SEARCH_R1_MAX_CONTEXT_LENGTH", checkout.path / "generate_with_search.py"
    note = "note: max_context_length is 9216, which fits MAX_TOKENS_PER_GPU x CONTEXT_PARALLEL, not the 16384 of"
    assert note in checkout.run(RUN, "--dry-run").stderr
    plugin.write_text(plugin.read_text().replace('"max_context_length": 16384,', '"max_context_length": 4096,'))
    assert job(checkout)[1][name] == "4096"
    assert "max_context_length" not in checkout.run(RUN, "--dry-run").stderr


@pytest.mark.parametrize(("visible", "gpus"), [("0,1,2,3", "4"), ("5", "1"), ("GPU-a,GPU-b", "2")])
def test_gpus_are_those_of_cuda_visible_devices(checkout: Checkout, visible: str, gpus: str) -> None:
    flags, _ = job(checkout, CUDA_VISIBLE_DEVICES=visible, NUM_GPUS="")
    assert flags["--actor-num-gpus-per-node"] == flags["--num-gpus-per-node"] == gpus
    assert ("--sequence-parallel" in flags) == (gpus != "1")


def test_without_cuda_visible_devices_the_machine_is_asked(checkout: Checkout) -> None:
    assert "no GPU" in error_of(checkout, NUM_GPUS="", CUDA_VISIBLE_DEVICES="")
    smi = checkout.python.parent / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: a)'\necho 'GPU 1: H100 (UUID: b)'\n")
    smi.chmod(0o755)
    assert job(checkout, NUM_GPUS="")[0]["--actor-num-gpus-per-node"] == "2"


def test_slime_is_found_two_folders_up(checkout: Checkout) -> None:
    inside = checkout.slime / "examples" / "search-r1"
    inside.parent.mkdir()
    checkout.path.rename(inside)
    checkout.path = inside
    _, environment = job(checkout, SLIME_DIR="")
    assert str(checkout.slime) in environment["PYTHONPATH"].split(":")


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("MODEL_ARGS_FILE", "/nowhere", "set MODEL_ARGS_FILE"),
        ("PYTHON", "python9", "no Python 'python9'"),
        ("NUM_GPUS", "two", "NUM_GPUS has value 'two'; it must be a whole number"),
        ("NUM_GPUS", "3", "set them so that it can"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(
    checkout: Checkout, variable: str, value: str, complaint: str
) -> None:
    assert complaint in error_of(checkout, **{variable: value})


def test_an_unknown_option_is_refused(checkout: Checkout) -> None:
    assert "unknown option '--dryrun'" in error_of(checkout, "--dryrun")


# --- what reaches the job ---


def test_the_job_finds_the_plugin_megatron_and_slime(checkout: Checkout) -> None:
    _, environment = job(checkout, MEGATRON_DIR="/the megatron", PYTHONPATH="/mine")
    wanted = ["/the megatron", str(checkout.path), str(checkout.slime), "/mine"]
    assert environment["PYTHONPATH"].split(":") == wanted


def test_all_settings_reach_the_job_but_no_key_is_shown(checkout: Checkout) -> None:
    secret = {variables()[key]: "s3cret" for key in secret_keys()}
    given = {name: f"value of {name}" for name in variables().values() if name not in secret}
    given |= {"SEARCH_R1_MAX_CONTEXT_LENGTH": "4000", "LLM_API_MODE": "chat"}
    given |= {variables()[key]: allowed[0] for key, allowed in CHOICES.items() if key != "llm_api_mode"}
    run = checkout.run(RUN, "--dry-run", **given, **secret)
    assert "s3cret" not in run.stdout + run.stderr
    _, environment = job(checkout, **given, **secret)
    assert {name: environment.get(name) for name in given} == given


@pytest.mark.slow
def test_a_dry_run_prints_what_a_run_executes(checkout: Checkout) -> None:
    variables = {"HF_CHECKPOINT": "/it's a $model", "RUN_NAME": 'a "name"', "USE_WANDB": "1"}
    printed = checkout.run(RUN, "--dry-run", **variables)
    assert checkout.run(RUN, **variables).returncode == 0
    [train] = checkout.calls("train")
    submitted = shlex.split(printed.stdout.replace("\\\n", " "))
    assert submitted[submitted.index("--") + 3 :] == train["argv"]
    started, _ = printed.stdout.split("ray job submit")
    assert shlex.split(started.replace("\\\n", " "))[1:] == checkout.calls("ray-start")[0]["argv"][:-1]  # but --block


@pytest.mark.slow
def test_a_run_shows_the_log_and_leaves_nothing_behind(checkout: Checkout) -> None:
    run = checkout.run(RUN, GOOGLE_API_KEY="s3cret")
    assert run.returncode == 0, run.stderr
    assert "step 1 of the training" in run.stdout
    [train] = checkout.calls("train")
    assert train["environment"]["GOOGLE_API_KEY"] == "s3cret"  # inherited from Ray
    assert train["environment"]["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert not any("s3cret" in str(call["argv"]) for call in checkout.calls("ray"))
    assert flags_of(checkout.calls("ray-start")[0]["argv"])["--num-gpus"] == "2"
    assert checkout.processes() == []


@pytest.mark.slow
def test_a_ray_that_asks_for_its_token_gets_it(checkout: Checkout) -> None:
    token = Path(checkout.environment["HOME"]) / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("s3cret")
    run = checkout.run(RUN)
    assert run.returncode == 0, run.stderr
    assert "s3cret" not in run.stdout + run.stderr


@pytest.mark.slow
def test_a_ray_whose_agent_is_not_there_yet_is_asked_again(checkout: Checkout) -> None:
    assert checkout.run(RUN, RAY_AGENT_IS_LATE="1").returncode == 0
    assert len(checkout.calls("ray-job-submit")) == 2


@pytest.mark.slow
def test_rays_note_of_our_cluster_is_removed_and_no_others(checkout: Checkout) -> None:
    note = checkout.temporary / "ray" / "ray_current_cluster"
    assert checkout.run(RUN).returncode == 0
    assert note.parent.exists() and not note.exists()
    note.write_text("10.0.0.1:6379")
    assert checkout.run(RUN, RAY_FAILS="1", MASTER_ADDR="127.0.0.1").returncode == 1
    assert not note.exists()  # ours had replaced it
    note.write_text("10.0.0.1:6379")
    checkout.run(RUN, "--dry-run")
    assert note.read_text() == "10.0.0.1:6379"


@pytest.mark.slow
def test_a_job_that_fails_fails_the_script(checkout: Checkout) -> None:
    run = checkout.run(RUN, TRAIN="3")
    assert run.returncode == 1
    assert "did not succeed" in run.stderr and "step 1 of the training" in run.stdout
    assert checkout.processes() == []


@pytest.mark.slow
def test_a_broken_log_stream_does_not_end_the_job(checkout: Checkout) -> None:
    with checkout.start(RUN, TRAIN="on", RAY_LOGS_BREAK_OFF="1") as process:
        eventually(lambda: len(checkout.calls("ray-job-status")) >= 2)
        assert process.poll() is None


@pytest.mark.slow
def test_a_ray_that_dies_is_reported_without_a_traceback(checkout: Checkout) -> None:
    with checkout.start(RUN, TRAIN="on") as process:
        eventually(lambda: checkout.calls("train"))
        os.kill(checkout.calls("ray-start")[0]["pid"], signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    assert "no longer answers" in checkout.output and "did not confirm" in checkout.output
    assert "Traceback" not in checkout.output


# --- stopping ---


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_the_job_and_its_ray_and_nothing_else(checkout: Checkout, how: signal.Signals) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with checkout.start(RUN, TRAIN="on") as process:
            eventually(lambda: checkout.calls("train"))
            if how == signal.SIGINT:
                interrupt(process)
            else:
                process.send_signal(how)
            assert process.wait(timeout=30) == 128 + how
        assert checkout.processes() == []
        assert len(checkout.calls("ray-job-stop")) == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_ray_that_does_not_start_is_reported(checkout: Checkout) -> None:
    run = checkout.run(RUN, RAY_FAILS="1")
    assert run.returncode == 1
    assert "some traceback of Ray" in run.stderr and "RAY_ADDRESS" in run.stderr
    assert checkout.calls("ray-job-submit") == []


@pytest.mark.slow
def test_a_running_cluster_is_joined_and_left_running(checkout: Checkout) -> None:
    url = f"http://127.0.0.1:{checkout.dashboard_port}"
    command = [checkout.python, checkout.path / "launch/contain.py", checkout.python.parent / "ray", "start"]
    command += ["--dashboard-port", str(checkout.dashboard_port)]
    with subprocess.Popen(command, env=checkout.environment) as ray:
        try:
            eventually(lambda: answers(checkout.dashboard_port))
            assert "a Ray runs already" in checkout.run(RUN).stderr  # and is not joined unless asked to
            assert checkout.run(RUN, RAY_ADDRESS=url).returncode == 0
            with checkout.start(RUN, RAY_ADDRESS=url, TRAIN="on") as process:
                eventually(lambda: len(checkout.calls("train")) == 2)
                interrupt(process)
                assert process.wait(timeout=30) == 130
            assert len(checkout.calls("ray-job-stop")) == 1
            assert len(checkout.calls("ray-start")) == 1
            assert ray.poll() is None
        finally:
            ray.terminate()
    assert checkout.processes() == []


def test_a_key_reaches_a_running_cluster_by_a_file_only(checkout: Checkout, tmp_path: Path) -> None:
    cluster = {"RAY_ADDRESS": "http://10.0.0.1:8265"}
    error = error_of(checkout, GOOGLE_API_KEY="s3cret", **cluster)
    assert "GOOGLE_API_KEY_FILE" in error and "s3cret" not in error
    _, environment = job(checkout, GOOGLE_API_KEY_FILE=str(tmp_path / "key"), **cluster)
    assert environment["GOOGLE_API_KEY_FILE"] == str(tmp_path / "key") and "GOOGLE_API_KEY" not in environment


# --- preflight ---


def test_a_mistake_that_preflight_finds_keeps_ray_from_starting(checkout: Checkout) -> None:
    run = checkout.run(RUN, PREFLIGHT="1", HF_CHECKPOINT="/no such model")
    assert run.returncode == 1
    assert "✗ model    folder            there is no folder /no such model" in run.stdout
    assert "correct them, or skip it with PREFLIGHT=0" in run.stderr.splitlines()[-1]
    assert checkout.calls("ray") == []


@pytest.mark.parametrize("option", ["--dry-run", "--check"])
def test_a_dry_run_and_a_check_of_the_settings_look_at_nothing_else(checkout: Checkout, option: str) -> None:
    run = checkout.run(RUN, option, PREFLIGHT="1", HF_CHECKPOINT="/no such model")
    assert run.returncode == 0 and "✗" not in run.stdout
    assert checkout.calls("ray") == []


def test_everything_that_is_missing_is_listed_at_once(checkout: Checkout) -> None:
    (checkout.python.parent / "ray").unlink()
    nothing = {"SLIME_DIR": "/nowhere", "NUM_GPUS": "0", "PYTHON": "python9"}
    words = [
        "no Python 'python9'",
        "no command 'ray'",
        "no slime in '/nowhere'",
        "no file '/nowhere/",
        "no GPU is visible",
    ]
    for option, label in (("--check", "error: "), ("--dry-run", "missing: ")):
        run = checkout.run(RUN, option, **nothing)
        lines = [line for line in run.stderr.splitlines() if not line.startswith("note: ")]
        assert len(lines) == len(words)
        assert all(line.startswith(label) and word in line for line, word in zip(lines, words, strict=True))
        assert run.returncode == (1 if option == "--check" else 0)


def test_a_dry_run_without_gpus_or_slime_prints_placeholders(checkout: Checkout) -> None:
    flags, _ = job(checkout, SLIME_DIR="/nowhere", NUM_GPUS="0")
    assert flags["--actor-num-gpus-per-node"] == "<NUM_GPUS>"
    assert flags["--colocate"] == "<MODEL_ARGS of /nowhere/scripts/models/qwen2.5-3B.sh>"
    assert "--custom-rollout-log-function-path" in flags  # as today's slime has it


@pytest.mark.parametrize("option", ["--dry-run", "--check"])
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TOKEN_TRACKING_MODE": "router_handler"}, "NOT compatible with llm_api_mode='generate'"),
        (
            {"SEARCH_BACKEND": "bing"},
            "SEARCH_BACKEND (search_backend) has value 'bing'; it must be one of google, local",
        ),
        ({"LLM_API_MODE": "Chat"}, "LLM_API_MODE"),
        ({"LOSS_MASK_MODE": "none"}, "LOSS_MASK_MODE"),
    ],
)
def test_unknown_and_incompatible_modes_are_refused(
    checkout: Checkout, option: str, variables: dict[str, str], words: str
) -> None:
    run = checkout.run(RUN, option, **variables)
    assert run.returncode == 1 and words in run.stderr and "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_step_that_arguments_change_is_still_one_update(checkout: Checkout) -> None:
    smaller = ["--", "--rollout-batch-size", "16", "--n-samples-per-prompt=4"]
    run = checkout.run(RUN, "--dry-run", *smaller)
    assert "note: the global batch size is 64, for one update per step of 16 x 4 samples" in run.stderr
    assert job(checkout, *smaller)[0]["--global-batch-size"] == "64"
    assert job(checkout, *smaller, "--global-batch-size", "32")[0]["--global-batch-size"] == "32"
    assert (
        job(checkout, *smaller, GLOBAL_BATCH_SIZE="128")[0]["--global-batch-size"] == "128"
    )  # two updates were asked for
    assert "global batch size" not in checkout.run(RUN, "--dry-run", "--", "--lr", "1e-5").stderr


def test_a_flag_that_neither_slime_nor_megatron_knows_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    megatron = tmp_path / "my megatron"
    (megatron / "megatron").mkdir(parents=True)
    (megatron / "megatron" / "config.py").write_text(
        "class C:\n    moe_router_topk: int = 2\n    bias_linear: bool = True\n"
    )
    known = [
        "--custom-rollout-log-function-path",
        "x",
        "--moe-router-topk=4",
        "--no-bias-linear",
        "--sglang-anything",
        "-1",
    ]
    where = {"MEGATRON_DIR": str(megatron), "PREFLIGHT": "1"}
    assert checkout.run(RUN, "--check", "--", *known, **where).returncode == 0
    for typo in ("--moe-router-topx", "--moe-router-topx=4"):
        assert "knows --moe-router-topx, and slime would ignore it" in error_of(checkout, "--", *known, typo, **where)
    assert checkout.run(RUN, "--check", "--", "--typo", **{**where, "PREFLIGHT": "0"}).returncode == 0
    assert checkout.run(RUN, "--check", "--", "--typo", PREFLIGHT="1").returncode == 0  # no Megatron to look at


def test_runs_are_named_after_the_model(checkout: Checkout) -> None:
    on = {"USE_WANDB": "1"}
    assert job(checkout, **on)[0]["--wandb-group"] == "qwen2.5-3b-instruct-generate"
    assert (
        job(checkout, HF_CHECKPOINT="/models/Qwen3-4B/", LLM_API_MODE="chat", **on)[0]["--wandb-group"]
        == "qwen3-4b-chat"
    )


def test_the_jobs_own_node_is_reached_without_a_proxy(checkout: Checkout) -> None:
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    for name in ("no_proxy", "NO_PROXY"):  # some programs read one of them, some the other
        environment = job(checkout, **{name: "mine.test"})[1]
        assert {"127.0.0.1", "localhost", "mine.test", socket.gethostname(), *own} <= set(
            environment["no_proxy"].split(",")
        )
        assert environment["NO_PROXY"] == environment["no_proxy"]


@pytest.mark.slow
def test_rays_own_commands_reach_its_dashboard_without_a_proxy(checkout: Checkout) -> None:
    assert checkout.run(RUN, http_proxy="http://127.0.0.1:9").returncode == 0
    for call in checkout.calls("ray"):
        assert {"127.0.0.1", "localhost"} <= set(call["environment"]["no_proxy"].split(","))


@pytest.mark.slow
def test_training_starts_if_preflight_finds_no_mistake(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.slime / "slime").mkdir(exist_ok=True)
    (checkout.slime / "slime" / "__init__.py").touch()
    with retriever_server(tmp_path / "retriever") as url:
        machine = Machine(tmp_path / "machine", url)
        ours = {**machine.environment, **checkout.environment}
        ours |= {name: machine.environment[name] for name in ("RETRIEVAL_SERVER_URL", "PREFLIGHT")}
        ours["PATH"] = f"{checkout.python.parent}:{machine.environment['PATH']}"
        run = checkout.run(RUN, **{**ours, "PYTHON": ""})
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(checkout.calls("train")) == 1
    shown = run.stdout.partition("step 1 of the training")[0]
    assert " skipped (" in shown.splitlines()[-1] and "✗" not in shown


# --- the settings ---


def test_help_and_documentation_have_every_setting(checkout: Checkout) -> None:
    settings = (checkout.path / "launch/settings.sh").read_text()
    defaults = dict(re.findall(r'^: "\$\{([A-Z0-9_]+):=(.*)\}" +# ', settings, flags=re.MULTILINE))
    assert len(defaults) == settings.count('\n: "${')
    assert set(re.findall(r"^  ([A-Z0-9_]+) .*\[", checkout.run(RUN, "--help").stdout, re.MULTILINE)) == set(defaults)
    page = (Path(__file__).parents[2] / "docs/TRAINING.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \|(?: `?([^`|]+?)`?)? \| [^|]* \|$", page, flags=re.MULTILINE))
    plain = {name: default for name, default in defaults.items() if "$" not in default}
    assert {name: rows.get(name) for name in plain} == plain
    assert set(defaults) <= set(rows)


def model_pairs() -> list[str]:
    """The files in docs/TRAINING.md's table of models."""
    page = (Path(__file__).parents[2] / "docs/TRAINING.md").read_text()
    return re.findall(r"^\| [A-Za-z-]+/[^|`]+ \| `([^`]+\.sh)` \|$", page, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif("SLIME_DIR" not in os.environ, reason="needs slime: SLIME_DIR=/path/to/slime")
def test_the_script_takes_every_model_of_slime(checkout: Checkout) -> None:
    slime = Path(os.environ["SLIME_DIR"])
    files = {path.name: path for path in (slime / "scripts/models").glob("*.sh")}
    assert len(model_pairs()) > 10 and set(model_pairs()) <= set(files)
    for path in files.values():
        flags, _ = job(checkout, SLIME_DIR=str(slime), MODEL_ARGS_FILE=str(path), NUM_GPUS="8")
        assert int(flags["--num-layers"]) > 0 and flags["--num-rollout"] == "3000"
