"""Advantages and loss against numbers worked out by hand; log-probabilities and gradients against naive code."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from demo_helpers import complete, plain_log_probs, request, some_ids, tiny_model
from fakes import tiny_tokenizer

from demo.engine import Engine
from demo.grpo import (
    BATCH_TOKENS,
    LOT_TOKENS,
    Lot,
    TrainSample,
    batches,
    clipped_loss,
    group_advantages,
    masked_log_probs,
    train_step,
)
from demo.prefix_tree import merge


@pytest.fixture
def model() -> Any:
    return tiny_model(tiny_tokenizer())


def trajectory(prompt: int, mask: Sequence[int], seed: int, advantage: float = 1.0, old: float = -3.0) -> TrainSample:
    """A sample of random tokens, `prompt` of them before the response; observations have rollout log-prob 0."""
    return TrainSample(
        tokens=some_ids(prompt + len(mask), seed=seed),
        loss_mask=list(mask),
        rollout_log_probs=[old if trained else 0.0 for trained in mask],
        advantage=advantage,
    )


def naive_log_probs(model: Any, sample: TrainSample) -> list[float]:
    """Those of the tokens with mask 1, by a pass over this sample alone."""
    start = len(sample.tokens) - len(sample.loss_mask)
    found = plain_log_probs(model, sample.tokens, start)
    return [log_prob for log_prob, trained in zip(found, sample.loss_mask, strict=True) if trained]


def lot(*samples: TrainSample) -> Lot:
    return Lot(list(samples), merge([sample.tokens for sample in samples]))


SAMPLES = [  # of different lengths, so that batches are padded; two with observations inside
    trajectory(5, [1, 1, 0, 0, 0, 1, 1], seed=1, advantage=1.5),
    trajectory(9, [1] * 30, seed=2, advantage=-0.5),
    trajectory(1, [1, 0, 1], seed=3, advantage=-0.5),
]

# --- advantages and loss ------------------------------------------------------------------------------------------


def test_advantages_are_rewards_in_standard_deviations_from_the_groups_mean() -> None:
    # Mean .25; squares .5625 + 3 * .0625 = .75, by n - 1 = 3: .25, so std .5.
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    # Mean .5, squares .25 + .25 by 1: std .7071.
    assert group_advantages([1.0, 0.0]) == pytest.approx([0.70711, -0.70711], abs=1e-5)


@pytest.mark.parametrize("rewards", [[0.2, 0.2, 0.2], [0.0, 0.0], [1.0], []])
def test_a_group_of_equal_rewards_has_no_advantages(rewards: list[float]) -> None:
    assert group_advantages(rewards) is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.2, 2.0, -2.4),  # inside the clip range
        (1.5, 2.0, -2.56),  # clipped: 1.28 * 2
        (0.5, 2.0, -1.0),  # unclipped: min(1, 1.6)
        (1.5, -2.0, 3.0),  # unclipped: min(-3, -2.56) = -3
        (0.5, -2.0, 1.6),  # clipped: min(-1, -1.6), at .8
    ],
)
def test_the_loss_of_a_token_is_clipped_on_the_side_that_its_advantage_pushes_to(
    ratio: float, advantage: float, loss: float
) -> None:
    new = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    found = clipped_loss(new, torch.tensor([-1.0]), torch.tensor([advantage]))
    assert found.item() == pytest.approx(loss, abs=1e-5)
    found.sum().backward()
    # d loss / d log_prob = -ratio * advantage, and nothing where it is clipped.
    clipped = loss in (-2.56, 1.6)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-5)


# --- log-probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_log_probs_of_a_padded_batch_equal_those_of_each_sample_alone(tied: bool) -> None:
    model = tiny_model(tiny_tokenizer(), tied=tied)
    with torch.no_grad():
        found = masked_log_probs(model, [lot(sample) for sample in SAMPLES], torch.float32)
    expected = [log_prob for sample in SAMPLES for log_prob in naive_log_probs(model, sample)]
    assert len(expected) == 4 + 30 + 2
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shared", [1, 20, 38])
def test_samples_of_one_tree_have_the_log_probs_of_each_alone(model: Any, shared: int) -> None:
    first = trajectory(10, [1] * 20 + [0] * 5 + [1] * 5, seed=6)
    second = replace(first, tokens=first.tokens[:shared] + some_ids(40 - shared, seed=7))
    samples = [first, second, replace(first, loss_mask=[0, 1] * 15), replace(first, tokens=first.tokens[:-8])]
    together = lot(*samples)
    assert len(together.tree.ids) == 40 + 40 - shared  # the third adds no token, the last is the beginning of the first
    with torch.no_grad():
        found = masked_log_probs(model, [together], torch.float32)
    expected = [log_prob for sample in samples for log_prob in naive_log_probs(model, sample)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_log_probs_are_taken_at_the_temperature_of_the_rollout(model: Any) -> None:
    sample = trajectory(4, [1] * 6, seed=4)
    with torch.no_grad():
        found = masked_log_probs(model, [lot(sample)], torch.float32, temperature=0.7)
    assert found.tolist() == pytest.approx(plain_log_probs(model, sample.tokens, 4, temperature=0.7), abs=1e-4)


def test_a_sample_without_trained_tokens_adds_nothing(model: Any) -> None:
    idle = trajectory(4, [0, 0, 0], seed=5)
    with torch.no_grad():
        alone = masked_log_probs(model, [lot(SAMPLES[0])], torch.float32)
        both = masked_log_probs(model, [lot(idle), lot(SAMPLES[0])], torch.float32)
    assert both.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


# --- a step -------------------------------------------------------------------------------------------------------


def gradients(model: Any, samples: Sequence[TrainSample]) -> dict[str, torch.Tensor]:
    """What a step of plain SGD with rate 1 takes off each parameter: the clipped gradient."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), samples, torch.float32)
    change = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    model.load_state_dict(before)
    return change


def test_the_loss_of_a_step_is_the_mean_of_the_samples_means(model: Any) -> None:
    means = []
    for sample in SAMPLES:
        ratios = [math.exp(log_prob + 3.0) for log_prob in naive_log_probs(model, sample)]  # old: -3
        clip = [min(max(ratio, 0.8), 1.28) for ratio in ratios]
        a = sample.advantage
        losses = [-min(ratio * a, clipped * a) for ratio, clipped in zip(ratios, clip, strict=True)]
        means.append(sum(losses) / len(losses))
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), SAMPLES, torch.float32)
    assert result.loss == pytest.approx(sum(means) / 3, rel=1e-4)


def test_a_steps_figures_are_means_over_trained_tokens(model: Any) -> None:
    log_probs = [log_prob for sample in SAMPLES for log_prob in naive_log_probs(model, sample)]
    ratios = [math.exp(log_prob + 3.0) for log_prob in log_probs]
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), SAMPLES, torch.float32)
    assert result.abs_delta_logprob == pytest.approx(sum(abs(log_prob + 3.0) for log_prob in log_probs) / 36, rel=1e-4)
    assert result.clip_fraction == pytest.approx(sum(not 0.8 <= ratio <= 1.28 for ratio in ratios) / 36)
    assert result.grad_norm > 0


def test_only_tokens_with_mask_1_influence_the_step(model: Any) -> None:
    sample = trajectory(5, [1, 1, 0, 0, 1, 1], seed=1)
    reference = gradients(model, [sample])
    other = replace(sample, rollout_log_probs=[-3.0, -3.0, -77.0, 5.0, -3.0, -3.0])
    assert all(torch.equal(reference[name], change) for name, change in gradients(model, [other]).items())
    trained = replace(sample, rollout_log_probs=[-3.0, -3.1, 0.0, 0.0, -3.0, -3.0])
    assert any(not torch.equal(reference[name], change) for name, change in gradients(model, [trained]).items())


def test_a_step_does_not_depend_on_how_the_samples_are_batched(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    together = gradients(model, SAMPLES)
    monkeypatch.setattr("demo.grpo.BATCH_TOKENS", 1)
    for name, change in gradients(model, SAMPLES).items():
        torch.testing.assert_close(change, together[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_moves_the_log_probs_of_its_tokens_where_the_advantage_points(model: Any, advantage: float) -> None:
    sample = trajectory(5, [1, 1, 0, 0, 1, 1], seed=1)
    before = naive_log_probs(model, sample)
    fresh = [before.pop(0) if trained else 0.0 for trained in sample.loss_mask]
    sample = replace(sample, rollout_log_probs=fresh, advantage=advantage)
    result = train_step(model, torch.optim.AdamW(model.parameters(), lr=1e-4), [sample], torch.float32)
    gain = sum(naive_log_probs(model, sample)) - sum(fresh)
    assert gain * advantage > 0
    assert result.loss == pytest.approx(-advantage, abs=1e-4)  # all ratios are 1
    assert result.clip_fraction == 0.0


def test_a_step_clips_its_gradient_and_leaves_none_behind(model: Any) -> None:
    change = gradients(model, [replace(sample, advantage=1000.0 * sample.advantage) for sample in SAMPLES])
    assert all(parameter.grad is None for parameter in model.parameters())
    norm = math.sqrt(sum(float(part.square().sum()) for part in change.values()))
    assert norm == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_and_training_log_probs_agree_in_float32(model: Any, temperature: float) -> None:
    prompts = [some_ids(length, seed=length) for length in (5, 20, 40)]
    with Engine(model, tiny_tokenizer(), dtype=torch.float32, slots=4, max_length=128) as engine:
        replies = complete(engine, *(request(ids, max_new_tokens=30, temperature=temperature) for ids in prompts))
    samples = [
        TrainSample(prompt + reply.output_ids, [1] * 30, reply.log_probs, advantage=1.0)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), samples, torch.float32, temperature)
    assert result.abs_delta_logprob < 1e-4
    assert result.clip_fraction == 0.0


# --- batches ------------------------------------------------------------------------------------------------------


def test_batches_hold_every_sample_once_and_keep_to_the_bounds() -> None:
    lengths = [3000, 700, 30, 1024, 1024, 512, 512, 512, 512, 5, 31]
    samples = [TrainSample(some_ids(length, seed=number), [1], [0.0]) for number, length in enumerate(lengths)]
    samples += [replace(samples[1], loss_mask=[1, 1]), replace(samples[5], tokens=samples[5].tokens[:300])]
    found = list(batches(samples))
    lots = [lot for batch in found for lot in batch]
    assert sorted(id(sample) for lot in lots for sample in lot.samples) == sorted(map(id, samples))
    assert len(found[0]) == 1 and len(found[0][0].tree.ids) == 3000  # too long for any company
    assert all(len(batch) * max(len(lot.tree.ids) for lot in batch) <= BATCH_TOKENS for batch in found[1:])
    assert all(len(lot.samples) == 1 or len(lot.tree.ids) <= LOT_TOKENS for lot in lots)
    assert len(found) <= 6 and any({id(samples[5]), id(samples[-1])} <= set(map(id, lot.samples)) for lot in lots)


def test_no_samples_make_no_batch() -> None:
    assert list(batches([])) == []
