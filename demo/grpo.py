"""GRPO on finished trajectories: group advantages, the clipped loss, one optimiser step.

    advantage   A = (r - mean) / (std + 1e-6) over the samples of one question, std with n - 1     (arXiv:2402.03300)
    loss        -min(w A, clip(w, 1 - 0.2, 1 + 0.28) A),  w = exp(log_prob - rollout log_prob), on tokens with mask 1,
                averaged over a sample's tokens, then over samples, as slime does     (upper bound: arXiv:2503.14476)

The rollout's log-probabilities are the old policy's, as with slime's --use-rollout-logprobs. There is no KL term, like
in slime's scripts for this task, which give it the coefficient 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from demo.numerics import computing, output_logits
from demo.prefix_tree import PrefixTree, hidden_states, neighbours

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
MAX_GRAD_NORM = 1.0
BATCH_TOKENS = 2048  # tree nodes of a forward and backward pass, including padding; bounds memory
LOT_TOKENS = 512  # nodes of one tree: attention costs their square


@dataclass(frozen=True)
class TrainSample:
    """The fields of a slime Sample that training reads."""

    tokens: list[int]  # (T,) prompt and response
    loss_mask: list[int]  # (T_resp,) over the last T_resp tokens
    rollout_log_probs: list[float]  # (T_resp,)
    advantage: float = 0.0


class Lot(NamedTuple):
    """Samples that begin alike, computed as one tree."""

    samples: list[TrainSample]
    tree: PrefixTree


@dataclass(frozen=True)
class StepResult:
    """The figures of one optimiser step."""

    loss: float
    grad_norm: float  # before clipping
    abs_delta_logprob: float  # mean |train - rollout log_prob| over trained tokens
    clip_fraction: float  # of trained tokens


def group_advantages(rewards: Sequence[float]) -> list[float] | None:
    """Advantages of one question's samples; None if all rewards are equal, so there is nothing to learn."""
    group = torch.tensor(rewards, dtype=torch.float64)
    if len(group) < 2 or bool((group == group[0]).all()):
        return None
    return ((group - group.mean()) / (group.std() + 1e-6)).tolist()


def clipped_loss(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """(N,), the loss of each token; all arguments are (N,)."""
    ratio = (log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantages)


def masked_log_probs(
    model: PreTrainedModel, batch: Sequence[Lot], dtype: torch.dtype, temperature: float = 1.0
) -> torch.Tensor:
    """(N,) log-probabilities of every token with mask 1, sample after sample, lot after lot."""
    with computing(model, dtype):
        hidden = hidden_states(model, [lot.tree for lot in batch])  # (B, nodes, D)
        predicting, targets = [], []  # for each trained token: the node before it, as a row of all nodes, and its id
        for row, lot in enumerate(batch):
            for path, sample in zip(lot.tree.paths, lot.samples, strict=True):
                prompt = len(path) - len(sample.loss_mask)
                trained = [prompt + place for place, mask in enumerate(sample.loss_mask) if mask]
                predicting += [row * hidden.shape[1] + path[place - 1] for place in trained]
                targets += [sample.tokens[place] for place in trained]
        # Only nodes before trained tokens need the output layer, each of them once.
        nodes, which = torch.unique(torch.tensor(predicting, device=model.device), return_inverse=True)
        logits = output_logits(model, hidden.flatten(0, 1)[nodes])  # (nodes, V)
    return torch.log_softmax(logits / temperature, dim=-1)[which, torch.tensor(targets, device=model.device)]


def train_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[TrainSample],
    dtype: torch.dtype,
    temperature: float = 1.0,
) -> StepResult:
    """One optimiser step on all samples."""
    model.train()
    loss_sum = delta_sum = clipped = tokens = 0.0
    for lots in batches(samples):
        log_probs = masked_log_probs(model, lots, dtype, temperature)
        batch = [sample for lot in lots for sample in lot.samples]
        counts = torch.tensor([sum(sample.loss_mask) for sample in batch])
        advantages = torch.tensor([sample.advantage for sample in batch]).repeat_interleave(counts)
        old = torch.cat([_masked(sample.rollout_log_probs, sample.loss_mask) for sample in batch])
        weights = (1.0 / counts / len(samples)).repeat_interleave(counts)  # sample means, then their mean
        advantages, old, weights = (values.to(log_probs.device) for values in (advantages, old, weights))
        loss = (clipped_loss(log_probs, old, advantages) * weights).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            delta = log_probs - old
            loss_sum += loss.item()
            delta_sum += delta.abs().sum().item()
            clipped += ((delta.exp() > 1 + CLIP_HIGH) | (delta.exp() < 1 - CLIP_LOW)).sum().item()
            tokens += len(delta)
    return StepResult(loss_sum, apply_gradients(model, optimizer), delta_sum / tokens, clipped / tokens)


def apply_gradients(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> float:
    """The optimiser's step with clipped gradients; returns their norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def batches(samples: Sequence[TrainSample]) -> Iterator[list[Lot]]:
    """Batches of lots of similar size: as many as make BATCH_TOKENS nodes with padding, or one lot."""
    pairs = neighbours([sample.tokens for sample in samples], LOT_TOKENS)
    lots = [Lot([samples[index] for index in indices], tree) for indices, tree in pairs]
    batch: list[Lot] = []
    for lot in sorted(lots, key=lambda lot: -len(lot.tree.ids)):
        if batch and (len(batch) + 1) * len(batch[0].tree.ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(lot)
    if batch:
        yield batch


def _masked(values: Sequence[float], mask: Sequence[int]) -> torch.Tensor:
    return torch.tensor([value for value, trained in zip(values, mask, strict=True) if trained])
