"""The optional hook for rewards: slime's own arithmetic, over samples that say something about the model."""

import argparse
import random

import pytest
import torch
from rollout_helpers import make_sample
from slime.utils.types import Sample

import generate_with_search


def batch(rewards: list[float], discarded: set[int] = frozenset()) -> list[Sample]:
    return [
        make_sample(
            index=place,
            reward=reward,
            metadata={"search_r1": {"stop_reason": "engine_failed" if place in discarded else "answered"}},
        )
        for place, reward in enumerate(rewards)
    ]


def slime_args(**changes):
    values = {
        "advantage_estimator": "grpo",
        "rewards_normalization": True,
        "grpo_std_normalization": True,
        "n_samples_per_prompt": 4,
        "rollout_batch_size": 3,
        "reward_key": None,
    }
    return argparse.Namespace(**(values | changes))


def by_slime(args, rewards: list[float]) -> list[float]:
    """As slime's rollout manager does it without a hook (v0.2.0 to HEAD of August 2026)."""
    if args.advantage_estimator not in ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline"):
        return rewards
    if not args.rewards_normalization:
        return rewards
    table = torch.tensor(rewards, dtype=torch.float)
    if len(rewards) == args.n_samples_per_prompt * args.rollout_batch_size:
        table = table.reshape(-1, args.n_samples_per_prompt)
    else:
        table = table.view(-1, len(rewards))
    table = table - table.mean(dim=-1, keepdim=True)
    if args.grpo_std_normalization and args.advantage_estimator != "reinforce_plus_plus_baseline":
        table = table / (table.std(dim=-1, keepdim=True) + 1e-6)
    return table.flatten().tolist()


@pytest.mark.parametrize("estimator", ["grpo", "gspo", "cispo", "reinforce_plus_plus_baseline", "ppo"])
@pytest.mark.parametrize("switches", [{}, {"grpo_std_normalization": False}, {"rewards_normalization": False}])
@pytest.mark.parametrize("count", [12, 7])
def test_without_discarded_samples_it_is_slimes_own(estimator, switches, count):
    args = slime_args(advantage_estimator=estimator, **switches)
    choose = random.Random(count)
    rewards = [choose.choice([0.0, 0.2, 0.8, 1.0]) for _ in range(count)]
    raw, normalised = generate_with_search.reward_post_process(args, batch(rewards))
    assert raw == rewards
    assert normalised == pytest.approx(by_slime(args, rewards), abs=1e-5)


def test_a_discarded_sample_changes_nothing_for_the_others():
    rewards = [*(1.0, 0.0, 0.0, 0.2), *(1.0, 0.0, 0.0, 1.0), *(0.2, 0.2, 0.2, 0.2)]
    raw, normalised = generate_with_search.reward_post_process(slime_args(), batch(rewards, {1, 4}))
    assert raw == rewards
    # 1, 0, 0.2: mean 0.4, deviation sqrt(0.28) = 0.52915; and 0, 0, 1: mean 1/3, deviation 0.57735
    assert normalised[:4] == pytest.approx([1.13389, 0.0, -0.75593, -0.37796], abs=1e-4)
    assert normalised[4:8] == pytest.approx([0.0, -0.57735, -0.57735, 1.15470], abs=1e-4)
    assert normalised[8:] == pytest.approx([0.0] * 4)


@pytest.mark.parametrize("discarded", [{0, 1, 2}, {0, 1, 2, 3}])
def test_a_group_with_less_than_two_left_teaches_nothing(discarded):
    args = slime_args(rollout_batch_size=1)
    assert generate_with_search.reward_post_process(args, batch([1.0] * 4, discarded))[1] == [0.0] * 4


def test_a_sample_without_our_record_counts():
    samples = [make_sample(reward=reward, metadata=None) for reward in (0.0, 1.0)]
    args = slime_args(n_samples_per_prompt=2, rollout_batch_size=1)
    assert generate_with_search.reward_post_process(args, samples)[1] == pytest.approx([-0.7071, 0.7071], abs=1e-4)
