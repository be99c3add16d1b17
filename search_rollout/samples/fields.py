"""slime's Sample, read and written: which of its fields a rollout uses, and what each must hold.

Works on any slime version's Sample by its attributes; slime is not imported. What we keep beyond slime's own fields is
the record in the sample's metadata: see `samples.record`.
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
    record_of,
    score_of,
    search_counts,
    store,
)
from search_rollout.trajectory import StopReason, Trajectory


class SampleError(ValueError):
    """A sample that cannot be rolled out; the message says what is wrong with it."""


class Prompt(NamedTuple):
    """A sample's prompt as the model reads it."""

    text: str
    messages: list[dict[str, Any]] | None  # None: the prompt came as a string
    tools: list[dict[str, Any]]  # empty in generate mode


def read_prompt(sample: Any, tokenizer: Any, kwargs: Mapping[str, Any], *, with_tools: bool) -> Prompt:
    """The prompt: a string as it is, messages and tools by the chat template. Raises SampleError."""
    tools = sample_tools(sample) if with_tools else []
    if isinstance(sample.prompt, str):
        return Prompt(sample.prompt, None, tools)
    try:
        messages = [dict(message) for message in sample.prompt]
    except (TypeError, ValueError) as error:
        raise SampleError(f"The prompt is neither a string nor a list of messages: {error}") from error
    try:
        return Prompt(render_prompt(tokenizer, messages, tools, **kwargs), messages, tools)
    except Exception as error:  # templates raise what they like about messages that they do not take
        raise SampleError(f"The chat template does not take the prompt: {error!r}") from error


def sample_tools(sample: Any) -> list[dict[str, Any]]:
    """The tools that came with the sample, else the search tool. Raises SampleError."""
    try:
        return tools_of(_metadata(sample))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise SampleError(f"The tools in the sample's metadata are not in OpenAI's form: {error}") from error


def template_kwargs(args: Any, sample: Any) -> dict[str, Any]:
    """Keyword arguments for the chat template: slime's, and the sample's own."""
    ours = getattr(args, "apply_chat_template_kwargs", None), getattr(sample, "apply_chat_template_kwargs", None)
    return {key: value for kwargs in ours if isinstance(kwargs, Mapping) for key, value in kwargs.items()}


def reset(sample: Any) -> None:
    """Removes an earlier, aborted rollout. slime's counters of the engine's work for this sample stay."""
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
    """Puts a finished trajectory into slime's fields, and its record beside them."""
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
    """The one form of a rollout that must not be trained: one masked token, `reward` kept, sample marked for removal.

    slime keeps the sample's position in its group, so it must stay well-formed: `filler_id` stands for a response, and
    for a prompt where there is none or it is too long for the trainer. Of the record only the counts of searches stay.
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
    if hasattr(sample, "rollout_top_p_token_ids"):  # which slime wants of every sample, if of any
        sample.rollout_top_p_token_ids, sample.rollout_top_p_token_offsets = [], [0, 0]
    store(sample, RolloutRecord(record.stop, record.trajectory_id, search_counts=search_counts(record.searches)))


def discarded_reward(args: Any, *, evaluation: bool) -> Any:
    """The reward 0.0 of a discarded sample, in the form in which slime reads rewards: a dict where it has a key."""
    key = getattr(args, "reward_key", None)
    if evaluation:
        key = getattr(args, "eval_reward_key", None) or key
    return {key: 0.0} if key else 0.0


def describe_to_slime(samples: Sequence[Any]) -> None:
    """Writes into the metadata what slime's own curves read: `raw_reward` (exact match), `round_number` (turns of the
    model) and `source_name` (the question's data set).

    A key is written into all samples of the batch or into none, because an early slime looks at the first sample only
    and fails where another one lacks the key. A discarded sample has an exact match and turns of 0.
    """
    for key, value_of in (("raw_reward", _exact_match), ("round_number", _rounds), ("source_name", _source)):
        values = [value_of(sample) for sample in samples]
        if None not in values:
            for sample, value in zip(samples, values, strict=True):
                sample.metadata = {**_metadata(sample), key: value}


def count_engine_work(args: Any, sample: Any, trajectory: Trajectory) -> None:
    """Adds to slime's own counters, where the version has them, what the engine did for this sample."""
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
    metadata = _metadata(sample)
    name = metadata.get("source_name") or metadata.get("data_source")
    return str(name) if name else None


def _metadata(sample: Any) -> dict[str, Any]:
    return sample.metadata if isinstance(sample.metadata, dict) else {}  # NaN or None on early slime
