"""Which step a rollout's series are plotted at."""

from typing import Any


def compute_rollout_step(args: Any, rollout_id: int) -> int:
    """The rollout's number, or that of its first update."""
    if args.wandb_always_use_train_step:
        return rollout_id * args.rollout_batch_size * args.n_samples_per_prompt // args.global_batch_size
    return rollout_id
