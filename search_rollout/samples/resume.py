"""Partial rollout: continues a rollout that slime aborted, without encoding anything again.

An aborted Sample holds its ids, loss mask and log-probabilities; its record holds the rest of the rollout's state. The
trajectory shows at which of three moments the abort came, and the loop of `generate_with_search` continues from there:

    before an engine call   the last segment is the environment's, or there is none: make the call
    inside a turn           the turn is open: the next reply continues it
    during a search         the turn is complete, without an observation: parse it and search again
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_rollout.engine.tracking import Tracking
from search_rollout.samples.record import RecordError, RolloutRecord, record_of
from search_rollout.trajectory import Trajectory

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Interrupted:
    """An aborted rollout as stored in its Sample. It never modifies the objects that it refers to."""

    tokens: Sequence[int]
    loss_mask: Sequence[int]  # (T_resp,)
    log_probs: Sequence[float] | None  # (T_resp,)
    weight_versions: Sequence[str]
    record: RolloutRecord

    def restore(self, trajectory: Trajectory, tracking: Tracking, decode: Decode) -> None:
        """Restores it into a trajectory that has only its prompt, and the router's state into `tracking`.

        Raises ValueError if it began with another prompt, or if its parts are inconsistent.
        """
        prompt_length = len(self.tokens) - len(self.loss_mask)
        if list(self.tokens[:prompt_length]) != trajectory.prompt_ids:
            raise ValueError("it began with another prompt")
        state = self.record.resume or {}
        trajectory.restore(self.tokens[prompt_length:], self.loss_mask, self.log_probs, self.record.spans, decode)
        trajectory.weight_versions = list(self.weight_versions)
        trajectory.finish, trajectory.ended_turn = state["finish"], state["ended_turn"]
        tracking.restore(state["tracking"])


def interrupted_rollout(args: Any, sample: Any) -> Interrupted | None:
    """The aborted rollout in the sample; None if the rollout must start from its prompt.

    With slime's --mask-offpolicy-in-partial-rollout its tokens are masked.
    """
    if sample.status != sample.Status.ABORTED or not sample.response_length:
        return None
    try:
        record = record_of(sample)
    except RecordError:
        return None
    if record is None or record.resume is None:
        return None
    masked = getattr(args, "mask_offpolicy_in_partial_rollout", False)
    return Interrupted(
        sample.tokens,
        [0] * sample.response_length if masked else sample.loss_mask or [],
        sample.rollout_log_probs,
        sample.weight_versions,
        record,
    )


def resume_state(trajectory: Trajectory, tracking: Tracking) -> dict[str, Any]:
    """The JSON values that `Interrupted.restore` needs besides the Sample's fields and the record.

    In router modes these are the text or messages sent to the router.
    """
    return {"finish": trajectory.finish, "ended_turn": trajectory.ended_turn, "tracking": tracking.state()}


def settle_open_turn(
    trajectory: Trajectory, decode: Decode, params: Mapping[str, Any], *, stop_ids: set[int], exact: bool
) -> None:
    """Prepares an open turn so that the engine can continue it, or closes it if nothing is missing.

    `params` are those of the call that would continue it. Without `exact` the turn is sampled again, because a router
    gets text or messages and stores no aborted replies. Otherwise ids are dropped from its end while it ends in part of
    a stop string, because the engine looks for stop strings only in newly sampled text.
    """
    if not trajectory.turn_is_open:
        return
    ids = trajectory.open_ids
    if not exact or not ids:
        trajectory.drop_open(len(ids), "")
        return
    text = trajectory.segments[-1].text
    if ids[-1] in stop_ids:
        trajectory.close_turn("stop", ended_turn=True)
    elif any(stop in text for stop in params["stop"]):
        trajectory.close_turn("stop")
    elif params["max_new_tokens"] < 1:
        trajectory.close_turn("length")
    else:
        kept = len(ids)
        while kept and _ends_in_part_of(text, params["stop"]):
            kept -= 1
            text = decode(ids[:kept])
        trajectory.drop_open(len(ids) - kept, text)


def _ends_in_part_of(text: str, strings: Sequence[str]) -> bool:
    """True if the text ends in a proper prefix of one of the strings."""
    return any(text.endswith(string[:length]) for string in strings for length in range(1, len(string)))
