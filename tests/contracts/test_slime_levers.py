"""Evaluation sets, mismatch figures and the collapse guard, through slime's own code. SLIME_DIR names a real one."""

import dataclasses
import inspect
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Turn
from test_slime import Sample, call, rolling, unused_packages  # noqa: F401  (fixtures for this module, too)
from test_slime_logging import Args, args_of, log_of_slime, parsed  # noqa: F401

import oai_format_data_preprocess

pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).resolve().parents[2]
ANSWER = "<think>y</think><answer>Nairobi</answer>"


def real_slime() -> Path:
    if not os.environ.get("SLIME_DIR"):
        pytest.skip("the stand-in has none of this")
    return Path(os.environ["SLIME_DIR"])


def set_fields() -> set[str]:
    """The keys of an evaluation set that this slime knows."""
    real_slime()
    from slime.utils.eval_config import EvalDatasetConfig

    if not dataclasses.is_dataclass(EvalDatasetConfig):
        pytest.skip("this slime knows no rollout function for one evaluation set")
    return {field.name for field in dataclasses.fields(EvalDatasetConfig)}


@pytest.fixture
def evaluation(tmp_path):
    """eval.yaml of two sets and their control."""
    raw = tmp_path / "own.jsonl"
    names = ["nq"] * 3 + ["hotpotqa"] * 2
    rows = [{"question": f"q{n}?", "golden_answers": ["x"], "data_source": name} for n, name in enumerate(names)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--input", str(raw), "--splits", "test", "--local_dir", str(tmp_path / "it's data")]
    assert oai_format_data_preprocess.main([*arguments, "--format", "xml", "--eval_per_set", "2"]) == 0
    return tmp_path / "it's data" / "eval.yaml"


def shown_by_the_script(tmp_path, **settings):
    """The flags of a dry run on this slime, and its notes."""
    (tmp_path / "model.sh").write_text("MODEL_ARGS=()\n")
    given = {"SLIME_DIR": str(real_slime()), "MODEL_ARGS_FILE": str(tmp_path / "model.sh"), "NUM_GPUS": "2"}
    given |= {"PYTHON": sys.executable, "PATH": os.environ["PATH"], "SEARCH_BACKEND": "local"} | settings
    command = [str(ROOT / "run_qwen2.5_3B.sh"), "--dry-run"]
    run = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=True)
    words = shlex.split(run.stdout.replace("\\\n", " "))
    return words[words.index("--colocate") + 1 :], run.stderr


# --- evaluation sets ---


def test_slimes_parser_reads_the_sets(parsed, evaluation, tmp_path):  # noqa: F811
    known = set_fields()
    pytest.importorskip(
        "omegaconf", reason="slime reads the file by omegaconf: .venv/bin/python -m pip install omegaconf"
    )
    words, notes = shown_by_the_script(tmp_path, EVAL_INTERVAL="5", EVAL_CONFIG=str(evaluation))
    flags = ("--eval-interval", "--eval-config", "--input-key", "--label-key", "--custom-rm-path")
    argv = [word for flag in flags for word in (flag, words[words.index(flag) + 1])]
    args, unknown = parsed(["--apply-chat-template", *argv])
    assert unknown == [] and args.eval_interval == 5
    sets = {one.name: one for one in args.eval_datasets}
    assert list(sets) == ["nq", "hotpotqa", "closed_book"]
    assert all(Path(one.path).is_file() and one.input_key == "prompt" for one in sets.values())
    functions = {name: one.custom_generate_function_path for name, one in sets.items()}
    assert functions == {"nq": None, "hotpotqa": None, "closed_book": "generate_with_search.generate_closed_book"}
    if "custom_rm_path" in known:
        assert {one.custom_rm_path for one in sets.values()} == {"generate_with_search.exact_match"}
        assert "note: this slime's eval/SET" not in notes
    else:
        assert "note: this slime's eval/SET is the training reward" in notes


async def test_slime_scores_a_set_by_exact_match_where_it_knows_how(rolling, Sample):  # noqa: F811
    wrong = "<think>y</think><answer>Mombasa</answer>"
    async with rolling([Turn(wrong)]) as (roll, _, _):
        sample = Sample(index=0, prompt="Capital of Kenya?", label={"ground_truth": {"target": ["Nairobi"]}})
        if hasattr(sample, "custom_rm_path"):
            sample.custom_rm_path = "generate_with_search.exact_match"
        sample = await roll(sample)
    assert sample.reward == (0.0 if hasattr(sample, "custom_rm_path") else pytest.approx(0.2))
    assert sample.metadata["search_r1"]["score"]["exact_match"] is False  # the series show it everywhere


async def test_slime_calls_the_controls_own_rollout_function(rolling, Sample):  # noqa: F811
    async with rolling([Turn("<think>x</think><search>Kenya</search>"), Turn(ANSWER)]) as (roll, _, engine):
        sample = Sample(index=0, prompt="Capital of Kenya?", label={"ground_truth": {"target": ["Nairobi"]}})
        if not hasattr(sample, "generate_function_path"):
            pytest.skip("this slime knows no rollout function for one evaluation set")
        sample.generate_function_path = "generate_with_search.generate_closed_book"
        sample = await roll(sample)
    assert len(engine.requests) == 1 and sample.metadata["search_r1"]["stop_reason"] == "turns_used"


def test_a_slime_without_such_sets_gets_none_and_one_line_says_so(tmp_path):
    real_slime()
    from slime.utils.eval_config import EvalDatasetConfig

    if dataclasses.is_dataclass(EvalDatasetConfig):
        pytest.skip("this slime has them")
    words, notes = shown_by_the_script(tmp_path, EVAL_INTERVAL="5")
    assert "note: no evaluation" in notes and not any(word.startswith("--eval-") for word in words)


# --- engine against trainer ---

FLAGS = ("--get-mismatch-metrics", "--use-tis", "--tis-clip", "--tis-clip-low", "--custom-tis-function-path")


@pytest.fixture
def losses():
    """slime's module of losses, without Megatron."""
    real_slime()
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("slime.backends.megatron_utils.loss")
    if not hasattr(module, "vanilla_tis_function"):
        pytest.skip("this slime has no function for the figures")
    return module, torch


def corrected(parsed, tmp_path, **settings):  # noqa: F811
    """slime's args of the script's flags for the mismatch."""
    words, _ = shown_by_the_script(tmp_path, **settings)
    argv: list[str] = []
    for place, word in enumerate(words):
        if word in FLAGS:
            argv += [word] if words[place + 1].startswith("--") else words[place : place + 2]
    args, unknown = parsed(argv)
    assert unknown == []
    return args


def batch(torch):
    """Two samples whose weights are 0.1, 1, 3 and 1."""
    trainer = [torch.tensor([0.1, 1.0, 3.0]).log(), torch.tensor([1.0]).log()]
    engine = [torch.zeros(3), torch.zeros(1)]
    masks = [torch.ones(3), torch.ones(1)]
    lengths = {"total_lengths": [4, 2], "response_lengths": [3, 1]}
    return {"train_log_probs": trainer, "rollout_log_probs": engine, "loss_masks": masks, **lengths}


def loss_of(args, losses):
    module, torch = losses
    from slime.utils.misc import load_function

    path = args.custom_tis_function_path
    function = load_function(path) if path else module.vanilla_tis_function
    loss, masks, figures = function(args, pg_loss=torch.ones(4), **batch(torch))
    assert len(masks) == 2
    return loss.tolist(), {name: value.tolist() for name, value in figures.items()}


def test_mismatch_figures_are_on_by_default_and_do_not_change_the_loss(parsed, losses, tmp_path):  # noqa: F811
    args = corrected(parsed, tmp_path)
    assert args.get_mismatch_metrics and not args.use_tis
    loss, figures = loss_of(args, losses)
    assert loss == [1.0] * 4
    assert figures["tis"] == pytest.approx([0.1, 1.0, 3.0, 1.0]) and figures["tis_clipfrac"] == [0.0, 0.0, 1.0, 0.0]


def test_use_tis_after_two_dashes_is_not_switched_off_by_our_figures(parsed, losses, tmp_path):  # noqa: F811
    args = corrected(parsed, tmp_path)
    args.use_tis = True
    assert loss_of(args, losses)[0] == pytest.approx([0.1, 1.0, 2.0, 1.0])


def test_tis_cuts_weights_at_two(parsed, losses, tmp_path):  # noqa: F811
    args = corrected(parsed, tmp_path, CORRECTION="tis")
    assert args.use_tis and args.custom_tis_function_path is None
    assert loss_of(args, losses)[0] == pytest.approx([0.1, 1.0, 2.0, 1.0])


def test_mis_drops_tokens_outside_its_bounds(parsed, losses, tmp_path):  # noqa: F811
    args = corrected(parsed, tmp_path, CORRECTION="mis")
    assert args.use_tis
    assert loss_of(args, losses)[0] == pytest.approx([0.0, 1.0, 0.0, 1.0])


def test_slimes_loss_calls_our_function_with_these_arguments(losses):
    source = inspect.getsource(losses[0].policy_loss_function)
    for name in ("pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks", "total_lengths", "response_lengths"):
        assert f'"{name}":' in source
    assert "args.get_mismatch_metrics or args.use_tis" in source


# --- the guard ---


async def test_a_collapse_ends_slimes_generate_by_an_exception(rolling, monkeypatch):  # noqa: F811
    import generate_with_search
    from search_rollout.collapse_guard import CollapseDetected, CollapseGuard

    log = log_of_slime("rollout")
    monkeypatch.setattr(generate_with_search, "_guard", CollapseGuard())
    bad = Turn("no tags, no tags, no tags, no tags")
    async with rolling([Turn(ANSWER), *[bad] * 4, *[bad] * 4]) as (roll, _, _):
        steps = [[await roll()] for _ in range(3)]
    args = args_of(collapse_guard="stop", search_backend="local", retrieval_server_url="http://a:1")
    log(0, args, steps[0], None, 1.0)
    log(1, args, steps[1], None, 1.0)
    with pytest.raises(CollapseDetected, match="since rollout 1"):
        log(2, args, steps[2], None, 1.0)


def test_slime_saves_before_it_generates_the_next_rollout():
    loop = (real_slime() / "train.py").read_text()
    saved, generated = loop.index("save_model("), loop.index("rollout_manager.generate.remote(")
    if "def save(" in loop:
        saved = loop.index("save(rollout_id)", loop.index("# train loop"))
    assert generated < saved  # of the same turn of the loop: what raises in generate leaves the last save whole
