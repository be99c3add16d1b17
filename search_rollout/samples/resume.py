"""Partial rollout: a rollout that slime aborted goes on where it was, without encoding anything again.

An aborted Sample holds its ids, loss mask and log-probabilities, and in its metadata what else the rollout knew. The
abort came at one of three moments; the loop of `generate_with_search` goes on from each, because the trajectory tells:

    before an engine call   the last segment is the environment's, or there is none: the call is made
    inside a turn           the turn is open: the next reply goes on with it
    during a search         the turn is complete and not answered: it is parsed again, and its search made again
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_rollout.engine.tracking import Tracking
from search_rollout.protocols.chat_template import decode
from search_rollout.samples.fields import rollout_info
from search_rollout.search.searcher import Passage, SearchResult
from search_rollout.trajectory import Segment, Trajectory


@dataclass(frozen=True)
class Interrupted:
    """An aborted rollout, as its Sample held it. What it refers to is never changed."""

    tokens: Sequence[int]
    loss_mask: Sequence[int]  # (T_resp,)
    log_probs: Sequence[float] | None  # (T_resp,)
    weight_versions: Sequence[str]
    info: Mapping[str, Any]  # the metadata that `write_rollout` and `resume_state` made

    @property
    def trajectory_id(self) -> str:
        """Under which a router knows it."""
        return self.info["trajectory_id"]

    def continues(self, trajectory: Trajectory) -> bool:
        """True if it began with this trajectory's prompt, and its parts fit each other."""
        length = len(self.loss_mask)
        recorded = sum(segment["tokens"] for segment in self.info["segments"])
        return (
            list(self.tokens) == trajectory.prompt_ids + list(self.tokens[len(self.tokens) - length :])
            and recorded == length
            and trajectory.track_log_probs == (self.log_probs is not None)
            and (self.log_probs is None or len(self.log_probs) == length)
        )

    def restore(self, trajectory: Trajectory, tracking: Tracking) -> None:
        """Puts it into a trajectory that has only its prompt, and what the router knows into `tracking`."""
        trajectory.response_ids = list(self.tokens[len(trajectory.prompt_ids) :])
        trajectory.loss_mask = list(self.loss_mask)
        trajectory.log_probs = None if self.log_probs is None else list(self.log_probs)
        trajectory.weight_versions = list(self.weight_versions)
        trajectory.segments = [Segment(**segment) for segment in self.info["segments"]]
        trajectory.searches = [_search_result(record) for record in self.info["searches"]]
        trajectory.search_seconds = self.info["search_seconds"]
        trajectory.mistakes = Counter(self.info["mistakes"])
        trajectory.finish = self.info["resume"]["finish"]
        trajectory.ended_turn = self.info["resume"]["ended_turn"]
        tracking.restore(self.info["resume"]["tracking"])


def interrupted_rollout(args: Any, sample: Any) -> Interrupted | None:
    """What an abort left in the sample; None if it is to begin with its prompt.

    With slime's --mask-offpolicy-in-partial-rollout nothing of it is trained.
    """
    info = rollout_info(sample)
    if sample.status != sample.Status.ABORTED or not sample.response_length or "resume" not in info:
        return None
    masked = getattr(args, "mask_offpolicy_in_partial_rollout", False)
    return Interrupted(
        sample.tokens,
        [0] * sample.response_length if masked else sample.loss_mask or [],
        sample.rollout_log_probs,
        sample.weight_versions,
        info,
    )


def resume_state(trajectory: Trajectory, tracking: Tracking) -> dict[str, Any]:
    """What `Interrupted.restore` needs beside the Sample's fields, as JSON values."""
    return {"finish": trajectory.finish, "ended_turn": trajectory.ended_turn, "tracking": tracking.state()}


def settle_open_turn(trajectory: Trajectory, tokenizer: Any, params: Mapping[str, Any], *, exact: bool) -> None:
    """Makes an open turn one that the engine can go on with, or completes it where nothing is missing.

    `params`: of the call that would go on with it. Not `exact` (a router is sent text or messages, and keeps no aborted
    reply): the turn is sampled anew. Else ids are dropped from its end while it ends in the beginning of a stop string,
    because the engine looks for stop strings in what it samples itself.
    """
    if not trajectory.turn_is_open:
        return
    ids = trajectory.open_ids
    if not exact or not ids:
        trajectory.drop_open(len(ids), "")
        return
    text = trajectory.segments[-1].text
    stop_ids = {tokenizer.eos_token_id, *(params.get("stop_token_ids") or [])}
    if ids and ids[-1] in stop_ids:
        trajectory.finish, trajectory.ended_turn = "stop", True
    elif any(stop in text for stop in params["stop"]):
        trajectory.finish = "stop"
    elif params["max_new_tokens"] < 1:
        trajectory.finish = "length"
    else:
        kept = len(ids)
        while kept and _ends_in_part_of(text, params["stop"]):
            kept -= 1
            text = decode(tokenizer, ids[:kept])
        trajectory.drop_open(len(ids) - kept, text)


def _ends_in_part_of(text: str, strings: Sequence[str]) -> bool:
    """True if a string begins at the end of the text, and does not end there."""
    return any(text.endswith(string[:length]) for string in strings for length in range(1, len(string)))


def _search_result(record: Mapping[str, Any]) -> SearchResult:
    passages = [Passage(document["title"], document["text"]) for document in record["documents"]]
    return SearchResult(record["query"], passages, record["error"], record["seconds"], record["origin"])
