"""Reads and writes slime's Sample: the fields that a rollout uses, and what each must hold.

Features are detected by attribute, so it works with any slime version; slime is not imported. Our only addition to
slime's own fields is the record in the sample's metadata: see `samples.record`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from search_rollout.protocols.chat_template import render_prompt
from search_rollout.protocols.tools import tools_of
from search_rollout.samples.record import (
    RecordError,
    RolloutRecord,
    Span,
    forget,
    is_discarded,
    metadata_of,
    record_of,
    score_of,
    search_counts,
    store,
)
from search_rollout.trajectory import StopReason, Trajectory


class SampleError(ValueError):
    """The sample cannot be rolled out; the message says why."""


class Prompt(NamedTuple):
    """A sample's prompt as the model reads it."""

    text: str
    messages: list[dict[str, Any]] | None  # None: the prompt is a string
    tools: list[dict[str, Any]]  # empty in generate mode
    template_kwargs: dict[str, Any]


def read_prompt(args: Any, sample: Any, tokenizer: Any, *, with_tools: bool) -> Prompt:
    """The prompt: a string unchanged, or messages and tools rendered by the chat template. Raises SampleError."""
    tools, kwargs = _tools(sample) if with_tools else [], _template_kwargs(args, sample)
    if isinstance(sample.prompt, str):
        return Prompt(sample.prompt, None, tools, kwargs)
    try:
        messages = [dict(message) for message in sample.prompt]
    except (TypeError, ValueError) as error:
        raise SampleError(f"The prompt is neither a string nor a list of messages: {error}") from error
    try:
        return Prompt(render_prompt(tokenizer, messages, tools, **kwargs), messages, tools, kwargs)
    except Exception as error:  # templates may raise anything
        raise SampleError(f"The chat template rejects the prompt: {error!r}") from error


def _tools(sample: Any) -> list[dict[str, Any]]:
    """The tools that came with the sample, else the search tool. Raises SampleError."""
    try:
        return tools_of(metadata_of(sample))
    except ValueError as error:
        raise SampleError(f"The tools in the sample's metadata are not in OpenAI's form: {error}") from error


def _template_kwargs(args: Any, sample: Any) -> dict[str, Any]:
    """Keyword arguments for the chat template: slime's, and the sample's own."""
    ours = getattr(args, "apply_chat_template_kwargs", None), getattr(sample, "apply_chat_template_kwargs", None)
    return {key: value for kwargs in ours if isinstance(kwargs, Mapping) for key, value in kwargs.items()}


def reset(sample: Any) -> None:
    """Removes an earlier, aborted rollout, but keeps slime's counters of the engine's work for this sample."""
    sample.tokens = []
    sample.response = ""
    sample.response_length = 0
    sample.loss_mask = None
    sample.rollout_log_probs = None
    sample.reward = None
    sample.weight_versions = []
    if hasattr(sample, "remove_sample"):
        sample.remove_sample = False
    if hasattr(sample, "non_generation_time"):
        sample.non_generation_time = 0.0
    if hasattr(sample, "rollout_top_p_token_ids"):
        sample.rollout_top_p_token_ids = sample.rollout_top_p_token_offsets = None
    forget(sample)


def write_rollout(
    sample: Any, trajectory: Trajectory, record: RolloutRecord, decode: Callable[[Sequence[int]], str]
) -> None:
    """Writes a finished trajectory into slime's fields, and its record into the metadata."""
    sample.tokens = trajectory.ids
    sample.response = decode(trajectory.response_ids)
    sample.response_length = len(trajectory.response_ids)
    sample.loss_mask = list(trajectory.loss_mask)
    sample.rollout_log_probs = None if trajectory.log_probs is None else list(trajectory.log_probs)
    sample.weight_versions = list(trajectory.weight_versions)
    sample.status = _status(sample, record.stop)
    if hasattr(sample, "non_generation_time"):
        sample.non_generation_time = record.search_seconds
    record.spans = [Span(segment.kind, segment.tokens) for segment in trajectory.segments]
    record.search_counts = search_counts(record.searches)
    store(sample, record)


def write_discarded(sample: Any, trajectory: Trajectory, record: RolloutRecord, *, filler_id: int, reward: Any) -> None:
    """Turns the sample into a discarded one: a single masked token, the given `reward`, marked for removal.

    slime keeps the sample in its group, so it must stay well-formed: `filler_id` replaces the response, and also the
    prompt if that is missing or too long for the trainer. The record keeps only its counts of searches.
    """
    too_long = record.stop is StopReason.PROMPT_TOO_LONG
    sample.tokens = [*(trajectory.prompt_ids[: 1 if too_long else None] or [filler_id]), filler_id]
    sample.response = ""
    sample.response_length = 1
    sample.loss_mask = [0]
    sample.rollout_log_probs = [0.0] if trajectory.track_log_probs else None
    sample.reward = reward
    sample.status = sample.Status.TRUNCATED
    if hasattr(sample, "remove_sample"):
        sample.remove_sample = True
    if hasattr(sample, "rollout_top_p_token_ids"):  # slime needs it on all samples or on none
        sample.rollout_top_p_token_ids, sample.rollout_top_p_token_offsets = [], [0, 0]
    store(sample, RolloutRecord(record.stop, record.trajectory_id, search_counts=search_counts(record.searches)))


def discarded_reward(args: Any, *, evaluation: bool) -> Any:
    """The reward 0.0 of a discarded sample, in the form that slime reads: a dict if a reward key is set."""
    key = getattr(args, "reward_key", None)
    if evaluation:
        key = getattr(args, "eval_reward_key", None) or key
    return {key: 0.0} if key else 0.0


def describe_to_slime(samples: Sequence[Any]) -> None:
    """Writes the metadata for slime's own curves: `raw_reward` (exact match), `round_number` (turns of the model) and
    `source_name` (the question's data set).

    Each key is written into all samples of the batch or into none, because early slime checks only the first sample and
    fails if another one lacks the key. For a discarded sample, exact match and turns are 0.
    """
    for key, value_of in (("raw_reward", _exact_match), ("round_number", _rounds), ("source_name", _source)):
        values = [value_of(sample) for sample in samples]
        if None not in values:
            for sample, value in zip(samples, values, strict=True):
                sample.metadata = {**metadata_of(sample), key: value}


def count_engine_work(args: Any, sample: Any, trajectory: Trajectory) -> None:
    """Adds the engine's work for this sample to slime's own counters, if this version has them."""
    if not hasattr(sample, "prefix_cache_info"):
        return
    for meta_info in trajectory.meta_infos:
        numbers = {key: value for key, value in meta_info.items() if type(value) is int}
        sample.prefix_cache_info.add(meta_info=numbers)
        if getattr(args, "sglang_speculative_algorithm", None):
            sample.spec_info.add(meta_info=numbers)


def _status(sample: Any, stop: StopReason) -> Any:
    if stop is StopReason.ABORTED:
        return sample.Status.ABORTED
    return sample.Status.COMPLETED if stop is StopReason.ANSWERED else sample.Status.TRUNCATED


def _exact_match(sample: Any) -> float | None:
    if is_discarded(sample):
        return 0.0
    found = (score_of(sample) or {}).get("exact_match")
    return None if found is None else float(found)


def _rounds(sample: Any) -> int | None:
    try:
        record = record_of(sample)
    except RecordError:
        return None
    return None if record is None else record.model_turns


def _source(sample: Any) -> str | None:
    metadata = metadata_of(sample)
    name = metadata.get("source_name") or metadata.get("data_source")
    return str(name) if name else None
