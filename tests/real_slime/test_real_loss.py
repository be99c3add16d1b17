"""slime's own loss on what a job dumped: a gradient at exactly the trained tokens of samples with an advantage."""

import argparse
import json
from typing import Any

import pytest
from slime_job import MANUAL, Job, Workplace, job_of, samples_of

from search_rollout.config import ConfigError, SearchConfig
from search_rollout.runtime import check_slime_args

DISCARDED = 5  # number of the sample that the plugin would have discarded
CERTAIN = -1e-3  # log-probability of a token whose gradient may round to 0


@pytest.fixture(autouse=True)
def has_a_schedule(workplace: Workplace) -> None:
    if not (workplace.slime / "slime" / "utils" / "dp_schedule.py").is_file():
        pytest.skip("this slime makes the schedule of its micro batches in the trainer, which needs a GPU")


def loss_of(workplace: Workplace, job: Job, *options: str, **settings: str) -> dict[str, Any]:
    """What slime's loss does with the samples of a job's first step: see `loss_on_dump.gradients`."""
    dump = job.folder / "0.pt"
    pair = next(pair for pair in MANUAL if pair[0] in job.folder.name)
    argv, environment = job_of(workplace.dry_run(**workplace.variables_of(pair), **settings))
    del environment["PYTHONPATH"]
    printed = workplace.python("loss_on_dump.py", str(dump), *options, "--", *argv, **environment)
    return json.loads(printed.splitlines()[-1])


def test_exactly_the_trained_tokens_with_an_advantage_get_a_gradient(workplace: Workplace, manual_job: Job) -> None:
    found = loss_of(workplace, manual_job, "--discard", str(DISCARDED))["samples"]
    samples = samples_of(manual_job.folder / "0.pt")
    assert found.pop(DISCARDED) == {"advantage": 0.0, "gradient_at": []}
    del samples[DISCARDED]
    for sample, result in zip(samples, found, strict=True):
        assert result["advantage"] != 0.0
        wanted = [place for place, trained in enumerate(sample["loss_mask"]) if trained]
        assert set(result["gradient_at"]) <= set(wanted)
        for place in set(wanted) - set(result["gradient_at"]):
            assert sample["rollout_log_probs"][place] > CERTAIN


@pytest.mark.parametrize("correction", ["none", "mis"])
def test_the_mismatch_of_exact_tokens_is_small(workplace: Workplace, manual_job: Job, correction: str) -> None:
    figures = loss_of(workplace, manual_job, CORRECTION=correction)["figures"]
    # The engine computes in bfloat16, the other side in float32.
    assert 0.0 < figures["train_rollout_logprob_abs_diff"] < 0.1
    assert figures["tis"] == pytest.approx(1.0, abs=0.1)
    assert figures["tis_clipfrac"] < 0.05


def test_slime_cannot_train_without_log_probabilities_and_the_plugin_says_so(
    workplace: Workplace, manual_job: Job
) -> None:
    with pytest.raises(AssertionError, match="TypeError"):
        loss_of(workplace, manual_job, "--without-log-probs")
    argv, environment = job_of(workplace.dry_run(**workplace.variables_of(MANUAL[0])))
    del environment["PYTHONPATH"]
    args = json.loads(workplace.python("unknown_flags.py", *argv, **environment).splitlines()[-1])["args"]
    untracked = SearchConfig(search_backend="local", track_log_probs=False)
    with pytest.raises(ConfigError, match="TRACK_LOG_PROBS=true"):
        check_slime_args(argparse.Namespace(**args), untracked, {})
    two_updates = argparse.Namespace(**args | {"global_batch_size": args["global_batch_size"] // 2})
    check_slime_args(two_updates, untracked, {})
