"""Forks a recorded rollout: cuts it after a search, gives the model something else to read, and continues.

What would the model have answered with the right document? The ids up to the cut, including the turn with its query,
are the recorded ones; only the new observation is encoded, once, as in any rollout. Technically this resumes an
interrupted rollout (`samples.resume`) with a given next observation.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evaluation.records import record_of
from qa_em_format import gold_answers
from search_rollout.protocols.base import Action
from search_rollout.runtime import Rollout, Runtime
from search_rollout.samples import fields as sample_fields
from search_rollout.samples.record import METADATA_KEY, VERSION, RecordError, read_record
from search_rollout.samples.resume import Interrupted
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.search.searcher import search_all
from search_rollout.trajectory import Segment, StopReason


class ForkError(ValueError):
    """The rollout cannot be forked in this way; the message says why."""


class Replacement(NamedTuple):
    query: str
    passages: list[Passage] | None = None  # None: search for `query` now


async def fork(
    runtime: Runtime,
    args: Any,
    fields: Mapping[str, Any],
    turn: int,
    replacements: Sequence[Replacement],
    sampling_params: dict[str, Any],
    watch: Callable[[Segment], None] | None = None,
) -> dict[str, Any]:
    """The Sample that results from `fields` if the searches of turn `turn` (from 1) are replaced.

    Give one replacement per query of that turn. The result has a reward if its label has gold answers. Raises
    ForkError, and EngineError if the engine does not answer. `watch`: see `roll_out`.
    """
    import generate_with_search

    cut = _cut(fields, turn, with_log_probs=runtime.tracks_log_probs(sampling_params))
    recorded = cut.record.turns[-1]
    if len(replacements) != len(recorded.queries):
        raise ForkError(f"Turn {turn} made {len(recorded.queries)} searches; {len(replacements)} were given.")
    sample = _sample(fields)
    rollout = await runtime.begin(args, sample, sampling_params, True, cut)
    if rollout.trajectory.ids != list(cut.tokens):
        raise ForkError(
            "This tokenizer does not reproduce the recorded prompt's ids; use the model that was rolled out."
        )
    trajectory = rollout.trajectory
    text = trajectory.segments[-1].text
    action = rollout.protocol.parse(text, think_opened=trajectory.turn_began_in_thought, ended=True)
    if action.queries != recorded.queries:
        raise ForkError(f"This version reads turn {turn} differently than the version that recorded it.")
    results = await _results(runtime, replacements)
    rollout.turns[-1] = dataclasses.replace(recorded, queries=[one.query for one in results], results=results)
    stop = _observe(runtime, rollout, action, results)
    stop = stop or await generate_with_search.roll_out(runtime, rollout, sampling_params, watch)
    trajectory.drop_unscored()
    sample_fields.write_rollout(sample, trajectory, rollout.record(stop), runtime.decode)
    if fields.get("rollout_log_probs") is None:  # they were only zeros as placeholders
        sample.rollout_log_probs = None
    if gold_answers(fields.get("label")):
        sample.reward = await generate_with_search.reward_func(args, sample)
    named = {key: fields[key] for key in ("id", "data_source") if key in fields}
    return record_of(sample, **named, phase=f"fork at turn {turn}")


def _cut(fields: Mapping[str, Any], turn: int, *, with_log_probs: bool) -> Interrupted:
    """The recorded rollout up to the end of a turn, as if it had been interrupted during that turn's searches."""
    found = (fields.get("metadata") or {}).get(METADATA_KEY) or {}
    if found.get("version") != VERSION:
        raise ForkError(
            "Only rollouts recorded by this plugin since 0.2 can be forked; others have no record of their turns."
        )
    try:
        record = read_record(found)
    except RecordError as error:
        raise ForkError(f"Cannot fork: {error}.") from error
    if not 1 <= turn <= len(record.turns) or not record.turns[turn - 1].results:
        raise ForkError(f"Turn {turn} made no search; there is nothing to replace.")
    ends = [place for place, span in enumerate(record.spans, start=1) if span.kind == "turn"]
    if len(ends) < turn:
        raise ForkError("The record's spans do not fit its turns.")
    spans = record.spans[: ends[turn - 1]]
    length, start = sum(span.tokens for span in spans), len(fields["tokens"]) - fields["response_length"]
    log_probs = fields.get("rollout_log_probs") or [0.0] * length
    resume = {"finish": "stop", "ended_turn": False, "tracking": {}}
    return Interrupted(
        fields["tokens"][: start + length],
        (fields.get("loss_mask") or [1] * length)[:length],
        log_probs[:length] if with_log_probs else None,
        [],
        dataclasses.replace(record, spans=spans, turns=record.turns[:turn], search_seconds=0.0, resume=resume),
    )


def _sample(fields: Mapping[str, Any]) -> Any:
    """A Sample with the same question and no rollout."""
    from slime.utils.types import Sample

    return Sample(
        index=fields.get("index"),
        group_index=fields.get("group_index"),
        prompt=fields["prompt"],
        label=fields.get("label"),
        metadata={key: value for key, value in fields["metadata"].items() if key != METADATA_KEY},
    )


async def _results(runtime: Runtime, replacements: Sequence[Replacement]) -> list[SearchResult]:
    asked = [one.query for one in replacements if one.passages is None]
    found = iter(await search_all(runtime.search, asked, runtime.aborted) or [])
    results = [
        next(found) if one.passages is None else SearchResult(one.query, list(one.passages)) for one in replacements
    ]
    if failed := next((result for result in results if result.error), None):
        raise ForkError(f"The search for {failed.query!r} failed: {failed.error}.")
    return results


def _observe(runtime: Runtime, rollout: Rollout, action: Action, results: list[SearchResult]) -> StopReason | None:
    """Appends the results as `roll_out` would; returns a reason to stop if they do not fit."""
    trajectory = rollout.trajectory
    message = rollout.protocol.observe(action, results, trajectory.response_ids[-1])
    if trajectory.room < len(message.ids) + runtime.config.answer_reserve_tokens:
        return StopReason.NO_ROOM_TO_OBSERVE
    trajectory.append_env(message)
    rollout.tracking.tell(message)
    return None
