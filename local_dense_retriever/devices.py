"""Where torch computes."""

import torch


def visible_devices() -> list[torch.device]:
    """All GPUs, or the CPU."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
