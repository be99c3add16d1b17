"""slime's real job in every mode: it ends well, leaves nothing behind, and its dumps hold what training needs."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from few_shot import write_collapse
from launch_helpers import eventually
from slime_job import MANUAL, SCRIPT, WRAPPER, Job, Workplace, arguments_for, samples_of
from transformers import AutoTokenizer

from evaluation import view
from search_rollout.config import VALID_PAIRS
from search_rollout.protocols.observation import UNAVAILABLE

BY_ROUTER = [pair for pair in VALID_PAIRS if pair[1] != "manual"]


class Extra(NamedTuple):
    """Settings and arguments to try in a real job, and regular expressions that its log must then match."""

    settings: dict[str, str]
    arguments: list[str]
    shown: list[str]


EXTRA = {
    "a group filter, and evaluation sets": Extra(
        {
            **{"GROUP_FILTER": "reward", "OVER_SAMPLING_BATCH_SIZE": "5", "PARTIAL_ROLLOUT": "1", "NUM_ROLLOUT": "2"},
            **{"SEARCH_R1_GROUP_FILTER_ROUNDS": "3"},  # the untrained model has few groups that vary
            **{"EVAL_INTERVAL": "2", "N_SAMPLES_PER_EVAL_PROMPT": "2"},
        },
        ["--skip-eval-before-train"],
        [
            r"Collected [1-9]\d* partial samples",  # the surplus of OVER_SAMPLING_BATCH_SIZE
            r"rollout 1: .*'rollout/search_r1/groups': .*'rollout/search_r1/groups_dropped/all_wrong': ",
            # Some greedy answers are right. slime's curve is exact match, not the training reward.
            r"'eval/capitals/search_r1/exact_match': (0\.[1-9]\d*)\b[\s\S]*'eval/capitals': \1\b",
            r"'eval/capitals-pass@2': \S*0\.[1-9]",  # by --log-passrate
            r"'eval/closed_book/search_r1/searches': 0\.0\b",
        ],
    ),
}


def check_dumps(workplace: Workplace, dumps: Path, steps: int = 1) -> None:
    """Every step was kept, something was searched, and each sample is what slime trains on."""
    tokenizer = AutoTokenizer.from_pretrained(workplace.model)
    files = [dumps / f"{number}.pt" for number in range(steps)]
    samples = [sample for file in files for sample in samples_of(file)]
    assert len(samples) == 8 * steps
    for sample in samples:
        check_sample(sample, tokenizer)
    masked = "".join(environment_text(sample, tokenizer) for sample in samples)
    assert re.search("information>|tool_response>", masked), "nothing was searched"
    page = dumps / "view.html"
    assert view.main([*map(str, files), "--tokenizer", str(workplace.model), "--output", str(page)]) in (0, None)
    assert page.stat().st_size > 10_000


def check_sample(sample: dict[str, Any], tokenizer: Any) -> None:
    """Lengths, mask, log-probabilities and text of one sample agree."""
    length, mask, log_probs = sample["response_length"], sample["loss_mask"], sample["rollout_log_probs"]
    response = sample["tokens"][-length:]
    assert len(sample["tokens"]) > length > 0
    assert len(mask) == len(log_probs) == length
    assert set(mask) <= {0, 1} and 1 in mask
    assert all(value <= 0.0 for value in log_probs)
    assert all(value == 0.0 for value, trained in zip(log_probs, mask, strict=True) if not trained)
    assert tokenizer.decode(response) == sample["response"]
    assert isinstance(sample["reward"], int | float)
    record = sample["metadata"]["search_r1"]
    assert record["stop_reason"]
    spans = {"sglang_generate"} | ({"search", "search_slot"} if record["search_counts"]["backend"] else set())
    assert spans <= {event["name"] for event in sample["trace"]["events"]}


def environment_text(sample: dict[str, Any], tokenizer: Any) -> str:
    """What is not trained of a response."""
    response: Sequence[int] = sample["tokens"][-sample["response_length"] :]
    return tokenizer.decode(
        [token for token, trained in zip(response, sample["loss_mask"], strict=True) if not trained]
    )


def check_nothing_is_left(workplace: Workplace) -> None:
    eventually(lambda: not workplace.processes(), timeout_s=90)  # behind a tmux session they end in their own time
    note = workplace.temporary / "ray" / "ray_current_cluster"
    assert not note.exists(), "the next plain ray.init() would wait for the cluster that is gone"
    workplace.remove_rays_files()


def test_a_job_by_the_training_script(workplace: Workplace, manual_job: Job) -> None:
    assert manual_job.status == 0, manual_job.output[-6000:]
    assert re.search(r"rollout 1: .*rollout/search_r1/searches", manual_job.output)
    assert list(manual_job.folder.glob("curves/slime-search-r1/my-run/*/events.*"))
    check_dumps(workplace, manual_job.folder, steps=2)
    check_nothing_is_left(workplace)


def test_a_ray_that_asks_for_its_token(workplace: Workplace, tmp_path: Path) -> None:
    token = workplace.temporary / ".ray" / "auth_token"  # any plain ray.init() writes it
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    (tmp_path / "train.py").write_text("import ray\nray.init('auto')\nprint('in the cluster')\n")  # not slime: quick
    job = workplace.run(SCRIPT, "--", "--any", **workplace.variables_of(MANUAL[0]), SLIME_DIR=str(tmp_path))
    assert job.returncode == 0, job.stdout[-6000:]
    assert "in the cluster" in job.stdout
    check_nothing_is_left(workplace)


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_further_settings(workplace: Workplace, retriever: str, tmp_path: Path, extra: Extra) -> None:
    variables = {**workplace.variables_of(MANUAL[0]), "RETRIEVAL_SERVER_URL": retriever, **extra.settings}
    job = workplace.run(SCRIPT, *arguments_for(tmp_path), *extra.arguments, **variables)
    assert job.returncode == 0, job.stdout[-6000:]
    for pattern in extra.shown:
        assert re.search(pattern, job.stdout), f"{pattern} is missing:\n{job.stdout[-6000:]}"
    check_dumps(workplace, tmp_path, steps=int(variables.get("NUM_ROLLOUT", "1")))
    check_nothing_is_left(workplace)


def test_the_guard_stops_a_collapsing_job_and_names_the_checkpoint(
    workplace: Workplace, retriever: str, tmp_path: Path
) -> None:
    prompts, in_order, checkpoints = tmp_path / "prompts.parquet", tmp_path / "in-order.yaml", tmp_path / "checkpoints"
    write_collapse(prompts, good=6, bad=10)  # at two a step, rollout 3 is the first bad one
    in_order.write_text("rollout_shuffle: false\n")
    for step in (1, 3):
        (checkpoints / f"iter_{step:07d}").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("3")
    settings = {
        "COLLAPSE_GUARD": "stop",
        "PROMPT_DATA": str(prompts),
        "CUSTOM_CONFIG_PATH": str(in_order),
        "ROLLOUT_TEMPERATURE": "0.01",
        "NUM_ROLLOUT": "8",
        "SAVE_DIR": str(checkpoints),
        "LOAD_DIR": str(workplace.reference),  # a job that starts at rollout 0
    }
    variables = {**workplace.variables_of(MANUAL[0]), "RETRIEVAL_SERVER_URL": retriever, **settings}
    job = workplace.run(SCRIPT, *arguments_for(tmp_path), **variables)
    assert job.returncode == 1, job.stdout[-6000:]
    assert "since rollout 3" in job.stdout
    assert f"Go back to {checkpoints}/iter_0000001 (LOAD_DIR={checkpoints}, and -- --ckpt-step 1)" in job.stdout
    assert "COLLAPSE_GUARD=stop ended the job" in job.stdout
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [f"{number}.pt" for number in range(5)]
    check_nothing_is_left(workplace)


def test_a_job_goes_on_without_its_retriever_and_discards_samples_without_its_engine(
    workplace: Workplace, tmp_path: Path
) -> None:
    # A search waits this long for a retriever that may come back.
    variables = {**workplace.variables_of(MANUAL[0]), "NUM_ROLLOUT": "5", "SEARCH_R1_SEARCH_TIMEOUT_S": "5"}
    with ThreadPoolExecutor() as pool:
        with workplace.retriever() as url:
            variables["RETRIEVAL_SERVER_URL"] = url
            running = pool.submit(workplace.run, SCRIPT, *arguments_for(tmp_path), **variables)
            workplace.await_file(tmp_path / "0.pt", unless=running.done)
        workplace.await_file(tmp_path / "2.pt", unless=running.done)
        workplace.kill("sglang::scheduler")
        job = running.result()
    assert job.returncode == 0, job.stdout[-6000:]
    assert re.search(r"rollout 2: .*'rollout/search_r1/searches_failed': 1\.0\b", job.stdout)
    assert re.search(r"rollout 4: .*'rollout/search_r1/discarded': 1\.0\b", job.stdout)
    check_dumps(workplace, tmp_path, steps=3)
    tokenizer = AutoTokenizer.from_pretrained(workplace.model)
    assert UNAVAILABLE in "".join(environment_text(sample, tokenizer) for sample in samples_of(tmp_path / "2.pt"))
    for sample in samples_of(tmp_path / "4.pt"):
        assert sample["metadata"]["search_r1"]["stop_reason"] == "engine_failed"
        assert (sample["reward"], sample["loss_mask"], sample["remove_sample"]) == (0.0, [0], True)
    check_nothing_is_left(workplace)


@pytest.mark.parametrize("pair", BY_ROUTER, ids="+".join)
def test_a_job_by_the_tmux_wrapper(workplace: Workplace, tmp_path: Path, pair: tuple[str, str]) -> None:
    variables = workplace.variables_of(pair) | {"LOG_DIR": str(tmp_path / "logs")}
    up = workplace.run(WRAPPER, "up", *arguments_for(tmp_path), **variables)
    assert up.returncode == 0, up.stdout[-6000:]
    workplace.await_session_end()
    log = next(tmp_path.glob("logs/training_*.log")).read_text(errors="replace")
    assert "training ended" in log and "exit status 0 ==" in log, log[-6000:]
    check_dumps(workplace, tmp_path)
    check_nothing_is_left(workplace)


def test_down_stops_a_job_in_the_middle(workplace: Workplace, tmp_path: Path) -> None:
    settings = {"LOG_DIR": str(tmp_path / "logs"), "NUM_ROLLOUT": "500"}
    variables = workplace.variables_of(("chat", "router_handler")) | settings
    up = workplace.run(WRAPPER, "up", *arguments_for(tmp_path), **variables)
    assert up.returncode == 0, up.stdout[-6000:]
    workplace.await_file(tmp_path / "0.pt")
    assert workplace.run(WRAPPER, "status", **variables).stdout.count(": ready\n") == 2
    assert workplace.run(WRAPPER, "down", **variables).returncode == 0
    check_nothing_is_left(workplace)
