"""Where series go: W&B and TensorBoard."""

import os
from typing import Any

from slime.utils.misc import SingletonMeta

wandb: Any = None  # not among what the demo installs


class _TensorboardAdapter(metaclass=SingletonMeta):
    def __init__(self, args: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(os.environ["TENSORBOARD_DIR"])

    def log(self, data: dict[str, float], step: int) -> None:
        for name, value in data.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


def log(args: Any, metrics: dict[str, Any], step_key: str) -> None:
    """`metrics` hold their step under `step_key`."""
    if args.use_wandb:
        wandb.log(metrics)
    if args.use_tensorboard:
        data = {name: value for name, value in metrics.items() if name != step_key}
        _TensorboardAdapter(args).log(data=data, step=metrics[step_key])
