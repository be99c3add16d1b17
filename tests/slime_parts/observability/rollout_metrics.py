"""slime's own series of a rollout, and the hooks that may log others before or instead of them."""

from typing import Any

from slime.observability import logging_utils
from slime.observability.metric_utils import compute_rollout_step
from slime.utils.misc import load_function


def log_rollout_data(
    rollout_id: int, args: Any, samples: list, rollout_extra_metrics: dict[str, Any] | None, rollout_time: float
) -> None:
    """A hook that returns True has logged everything."""
    if args.custom_rollout_log_function_path is not None:
        hook = load_function(args.custom_rollout_log_function_path)
        if hook(rollout_id, args, samples, rollout_extra_metrics, rollout_time):
            return
    if args.load_debug_rollout_data:
        return
    truncated = sum(sample.status == sample.Status.TRUNCATED for sample in samples) / len(samples)
    own = {"rollout/truncated_ratio": truncated, "perf/rollout_time": rollout_time}
    step = compute_rollout_step(args, rollout_id)
    logging_utils.log(args, (rollout_extra_metrics or {}) | own | {"rollout/step": step}, step_key="rollout/step")


def log_eval_rollout_data(
    rollout_id: int, args: Any, data: dict[str, dict[str, Any]], extra_metrics: dict[str, Any] | None = None
) -> None:
    """`data`: "rewards" and "samples" of each data set."""
    if args.custom_eval_rollout_log_function_path is not None:
        hook = load_function(args.custom_eval_rollout_log_function_path)
        if hook(rollout_id, args, data, extra_metrics):
            return
    own = {f"eval/{name}": sum(results["rewards"]) / len(results["rewards"]) for name, results in data.items()}
    step = compute_rollout_step(args, rollout_id)
    logging_utils.log(args, (extra_metrics or {}) | own | {"eval/step": step}, step_key="eval/step")
