"""Partial rollout: a rollout that slime aborted continues where it was, without encoding anything again.

An aborted Sample holds its ids, loss mask and log-probabilities, and its record what else the rollout knew. The abort
came at one of three moments; the loop of `generate_with_search` continues from each, because the trajectory tells:

    before an engine call   the last segment is the environment's, or there is none: the call is made
    inside a turn           the turn is open: the next reply continues it
    during a search         the turn is complete and not replied to: it is parsed again, and its search made again
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
    """An aborted rollout, as its Sample held it. What it refers to is never changed."""

    tokens: Sequence[int]
    loss_mask: Sequence[int]  # (T_resp,)
    log_probs: Sequence[float] | None  # (T_resp,)
    weight_versions: Sequence[str]
    record: RolloutRecord

    def restore(self, trajectory: Trajectory, tracking: Tracking, decode: Decode) -> None:
        """Puts it into a trajectory that has only its prompt, and what the router knows into `tracking`.

        Raises ValueError if it did not begin with this trajectory's prompt, or its parts do not fit each other.
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
    """What an abort left in the sample; None if the rollout is to begin with its prompt.

    With slime's --mask-offpolicy-in-partial-rollout nothing of it is trained.
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
    """What `Interrupted.restore` needs beside the Sample's fields and the record, as JSON values.

    In a router mode that is the text, or the messages, that the router was sent.
    """
    return {"finish": trajectory.finish, "ended_turn": trajectory.ended_turn, "tracking": tracking.state()}


def settle_open_turn(
    trajectory: Trajectory, decode: Decode, params: Mapping[str, Any], *, stop_ids: set[int], exact: bool
) -> None:
    """Makes an open turn one that the engine can continue, or closes it where nothing is missing.

    `params` are those of the call that would continue it. Without `exact` (a router is sent text or messages, and keeps
    no aborted reply) the turn is sampled again. Else ids are dropped from its end while it ends in the beginning of a
    stop string, because the engine looks for stop strings only in what it samples itself.
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
    """True if a string begins at the end of the text, and does not end there."""
    return any(text.endswith(string[:length]) for string in strings for length in range(1, len(string)))
