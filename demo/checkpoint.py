"""The checkpoint of an interrupted run: weights, optimizer and progress in one file, replaced atomically."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

FILE = "resume.pt"  # 1.6 GB for SmolLM2-135M; deleted when the run is finished


@dataclass
class Progress:
    """The progress of a run."""

    summary: dict[str, Any]
    warm_started: bool = False
    before: list[bool] = field(default_factory=list)  # exact match of the first evaluation, question by question
    evaluation_s: float = 0.0  # its duration in seconds
    longest_step_s: float = 0.0  # of GRPO
    questions: int = 0  # training questions used
    seconds: float = 0.0  # used until the checkpoint
    log_sizes: dict[str, int] = field(default_factory=dict)


def save(folder: Path, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Replaces the folder's checkpoint atomically: a kill leaves the old one."""
    unfinished = folder / f"{FILE}.unfinished"
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    torch.save({"progress": asdict(progress), **state}, unfinished)
    unfinished.replace(folder / FILE)


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restores model and optimizer; None if the run ended before its first checkpoint."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        return Progress(**state["progress"])
    except (RuntimeError, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"{path} cannot be used ({str(error).splitlines()[0]}); start the demo again.") from error


def delete(folder: Path) -> None:
    """Deletes the checkpoint of a finished run."""
    (folder / FILE).unlink(missing_ok=True)
