"""Detects from a run's rollout series that the model is collapsing; COLLAPSE_GUARD sets the reaction.

The rule was derived from provoked collapses (docs/METRICS.md). In STEPS consecutive steps, each compared with the best
of all earlier steps,

    valid_format has fallen and truncated has risen,
    and repetition has risen or log_prob has fallen,

each by at least its margin in MARGINS. Long answers alone, or a single bad step, are not a collapse.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

MARGINS = {"valid_format": -0.1, "truncated": 0.03, "repetition": 0.1, "log_prob": -0.05}  # negative: a fall
STEPS = 2


class CollapseDetected(RuntimeError):
    """Ends the job if COLLAPSE_GUARD=stop; the message names the checkpoint to return to."""


class Alarm(NamedTuple):
    since: int  # the first rollout of the collapse
    best: Mapping[str, float]  # of each series, before this step
    now: Mapping[str, float]

    def __str__(self) -> str:
        changes = ", ".join(f"{name} {self.best[name]:.2f} → {self.now[name]:.2f}" for name in MARGINS)
        return f"the model is collapsing since rollout {self.since}: {changes}"


class CollapseGuard:
    """Applies the rule to one run's steps. It has no side effects: it logs nothing and stops nothing."""

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._bad: list[int] = []  # the consecutive rollouts that look like a collapse

    def observe(self, rollout_id: int, series: Mapping[str, float]) -> Alarm | None:
        """Takes a step's series of `metrics.rollout_metrics`; returns an alarm once, when a collapse is detected.

        Steps that lack one of the series are skipped, such as a step whose samples were all discarded.
        """
        if not all(name in series for name in MARGINS):
            return None
        now, best = {name: series[name] for name in MARGINS}, self._best or dict(series)
        moved = {name: _moved(now[name] - best[name], margin) for name, margin in MARGINS.items()}
        shows_it = moved["valid_format"] and moved["truncated"] and (moved["repetition"] or moved["log_prob"])
        self._bad = [*self._bad, rollout_id] if shows_it else []
        self._best = {name: (min if margin > 0 else max)(now[name], best[name]) for name, margin in MARGINS.items()}
        return Alarm(self._bad[0], best, now) if len(self._bad) == STEPS else None


def _moved(change: float, margin: float) -> bool:
    return change <= margin if margin < 0 else change >= margin


def act_on(alarm: Alarm, mode: str, save: str | None) -> None:
    """Warns, or raises CollapseDetected; `mode` is COLLAPSE_GUARD, `save` slime's --save."""
    if mode == "off":
        return
    message = f"{alarm}. {way_back(save, alarm.since)}"
    if mode == "stop":
        raise CollapseDetected(f"{message} COLLAPSE_GUARD=stop ended the job.")
    logger.warning("%s", message)


def way_back(save: str | None, since: int) -> str:
    """One sentence that says which checkpoint to continue from, and how."""
    if not save:
        return "No checkpoint was saved (SAVE_DIR), so restart training from the beginning, at a lower learning rate."
    step = last_good_checkpoint(Path(save), since)
    if step is None:
        return f"No checkpoint in {save} is older than the collapse: restart training, at a lower learning rate."
    checkpoint = Path(save) / f"iter_{step:07d}"
    return f"Go back to {checkpoint} (LOAD_DIR={save}, and -- --ckpt-step {step}), at a lower learning rate."


def last_good_checkpoint(folder: Path, since: int) -> int | None:
    """The newest complete checkpoint whose model still rolled out well; None if there is none.

    slime numbers a checkpoint by the last rollout it was trained on, so checkpoint `since - 2` produced the step before
    `since`. Checkpoints newer than Megatron's latest_checkpointed_iteration.txt may be incomplete. Megatron treats
    --ckpt-step 0 as no step.
    """
    try:
        whole = int((folder / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8"))
        steps = [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"iter_(\d{7,})", path.name))]
    except (OSError, ValueError):
        return None
    return max((step for step in steps if 0 < step <= min(whole, since - 2)), default=None)
