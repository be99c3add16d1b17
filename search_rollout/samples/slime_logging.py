"""Logs our series with slime's loggers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from search_rollout.metrics import flat, rollout_metrics, search_cost
from search_rollout.search.usage import SearchUsage
from search_rollout.slime_functions import slime_function

logger = logging.getLogger(__name__)


class SeriesLogger:
    """Logs the series of `search_rollout.metrics`, and the cost of searching since the last call."""

    def __init__(self, usage: SearchUsage) -> None:
        self._usage = usage
        self._logged = usage.snapshot()
        self._groups: Sequence[Any] = ()
        self._counts: Mapping[str, float] = {}

    def hold(self, groups: Sequence[Any], counts: Mapping[str, float]) -> None:
        """Holds all groups of a step, including dropped ones, until the step is logged.

        The step's series then cover all of them, not only the trained samples, and include `counts`.
        """
        self._groups, self._counts = groups, counts

    def log(
        self, rollout_id: int, args: Any, kind: str, samples: Mapping[str, Sequence[Any] | None]
    ) -> dict[str, dict[str, float]]:
        """Logs prefix → samples under slime's own prefixes and step, so that W&B plots all on one axis. Never raises.

        `kind` is "rollout" or "eval". Returns prefix → series; a failed one is missing.
        """
        series: dict[str, dict[str, float]] = {}
        try:
            now = self._usage.snapshot()
            series[kind] = search_cost(now, since=self._logged)
            self._logged = now
            for prefix, some in samples.items():
                covered, counts = self._held(some) if kind == "rollout" else (some, {})
                figures = rollout_metrics(covered or (), getattr(args, "reward_key", None))
                series[prefix] = {**series.get(prefix, {}), **figures, **counts}
            metrics = {
                f"{prefix}/search_r1/{name}": value for prefix, rows in series.items() for name, value in rows.items()
            }
            logger.info("%s %s: %s", kind, rollout_id, metrics)
            step, step_key = slime_function("metric_utils.compute_rollout_step")(args, rollout_id), f"{kind}/step"
            log = slime_function("logging_utils.log", "tracking_utils.log")
            log(args, {**metrics, step_key: step}, step_key=step_key)
        except Exception:  # a failed plot must not end the job
            logger.exception("%s %s: the series could not be logged", kind, rollout_id)
        return series

    def _held(self, trained: Sequence[Any] | None) -> tuple[Sequence[Any] | None, Mapping[str, float]]:
        """The groups held for the step of these samples, or else the samples themselves."""
        groups, counts = self._groups, self._counts
        self.hold((), {})
        theirs = {id(sample) for sample in flat(groups)}
        same = bool(theirs) and all(id(sample) in theirs for sample in flat(trained))
        return (groups, counts) if same else (trained, {})
