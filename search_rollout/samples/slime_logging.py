"""Our series in slime's loggers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from search_rollout.metrics import rollout_metrics, search_cost
from search_rollout.search.usage import SearchUsage
from search_rollout.slime_functions import slime_function

logger = logging.getLogger(__name__)


class SeriesLogger:
    """Logs the series of `search_rollout.metrics`, and what searching has cost since the last time."""

    def __init__(self, usage: SearchUsage) -> None:
        self._usage = usage
        self._logged = usage.snapshot()
        self._groups: dict[str, float] = {}

    def hold(self, groups: Sequence[Any], counts: Mapping[str, float], reward_key: str | None) -> None:
        """Keeps the series of all groups of a step, dropped ones included, for the next rollout that is logged.

        They replace those of the samples that are trained, which slime's own series are of.
        """
        self._groups = {**rollout_metrics(groups, reward_key), **counts}

    def log(self, rollout_id: int, args: Any, kind: str, samples: Mapping[str, Sequence[Any] | None]) -> None:
        """Logs prefix → samples under slime's own prefixes and step, so that W&B plots all over one axis. Never raises.

        `kind` is "rollout" or "eval".
        """
        try:
            now = self._usage.snapshot()
            series = {kind: search_cost(now, since=self._logged)}
            self._logged = now
            for prefix, some in samples.items():
                series[prefix] = series.get(prefix, {}) | rollout_metrics(some or (), getattr(args, "reward_key", None))
            if kind == "rollout":
                series[kind] |= self._groups
                self._groups = {}
            metrics = {
                f"{prefix}/search_r1/{name}": value for prefix, rows in series.items() for name, value in rows.items()
            }
            logger.info("%s %s: %s", kind, rollout_id, metrics)
            step, step_key = slime_function("metric_utils.compute_rollout_step")(args, rollout_id), f"{kind}/step"
            log = slime_function("logging_utils.log", "tracking_utils.log")
            log(args, {**metrics, step_key: step}, step_key=step_key)
        except Exception:  # a plot is no reason to end the job
            logger.exception("%s %s: the series could not be logged", kind, rollout_id)
