"""slime's Sample, read and written: which of its fields a rollout uses, and what each must hold.

Works on any slime version's Sample by its attributes; slime is not imported. Everything of ours beyond slime's own
fields stands in `sample.metadata[METADATA_KEY]`, as plain JSON values.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from search_rollout.protocols.chat_template import decode, render_prompt, strip_end
from search_rollout.protocols.tools import tools_of
from search_rollout.trajectory import StopReason, Trajectory

METADATA_KEY = "search_r1"


class SampleError(ValueError):
    """A sample that cannot be rolled out; the message says what is wrong with it."""


def prompt_messages(sample: Any) -> list[dict[str, Any]] | None:
    """The prompt's messages; None if it is a string. Raises SampleError."""
    if isinstance(sample.prompt, str):
        return None
    try:
        return [dict(message) for message in sample.prompt]
    except (TypeError, ValueError) as error:
        raise SampleError(f"The prompt is neither a string nor a list of messages: {error}") from error


def prompt_text(sample: Any, tokenizer: Any, tools: Sequence[Mapping[str, Any]], template_kwargs: Any) -> str:
    """The prompt as the model's text: a string as it is, messages and tools by the chat template.

    Raises SampleError.
    """
    messages = prompt_messages(sample)
    if messages is None:
        return sample.prompt
    try:
        return render_prompt(tokenizer, messages, tools, **template_kwargs)
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


def rollout_info(sample: Any) -> dict[str, Any]:
    """What an earlier rollout of this sample recorded; empty if there was none."""
    info = _metadata(sample).get(METADATA_KEY)
    return info if isinstance(info, dict) else {}


def add_info(sample: Any, info: Mapping[str, Any]) -> None:
    """Records `info` in the sample's metadata, without changing a dict that siblings may share."""
    sample.metadata = {**_metadata(sample), METADATA_KEY: {**rollout_info(sample), **info}}


def reset(sample: Any) -> None:
    """Forgets an earlier, aborted rollout. slime's counters of the engine's work for this sample stay."""
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
    sample.metadata = {key: value for key, value in _metadata(sample).items() if key != METADATA_KEY}


def write_rollout(sample: Any, trajectory: Trajectory, stop: StopReason, tokenizer: Any) -> None:
    """Puts a finished trajectory into slime's fields."""
    sample.tokens = trajectory.ids
    sample.response = decode(tokenizer, trajectory.response_ids)
    sample.response_length = len(trajectory.response_ids)
    sample.loss_mask = list(trajectory.loss_mask)
    sample.rollout_log_probs = None if trajectory.log_probs is None else list(trajectory.log_probs)
    sample.weight_versions = list(trajectory.weight_versions)
    sample.status = _status(sample, stop)
    if hasattr(sample, "non_generation_time"):
        sample.non_generation_time = trajectory.search_seconds
    add_info(
        sample,
        {
            "stop_reason": stop.value,
            "gave_up": False,
            "turns": trajectory.turns,
            "corrections": sum(segment.kind == "correction" for segment in trajectory.segments),
            "mistakes": dict(trajectory.mistakes),
            "think_opened": trajectory.think_opened,
            "end_of_turn": _ends_of_turns(trajectory, tokenizer),
            "segments": [segment._asdict() for segment in trajectory.segments],
            "search_seconds": trajectory.search_seconds,
            "search_counts": _search_counts(trajectory),
            "searches": [
                {
                    "query": result.query,
                    "error": result.error,
                    "origin": result.origin,
                    "seconds": round(result.seconds, 4),
                    "documents": [{"title": passage.title, "text": passage.text} for passage in result.passages],
                }
                for result in trajectory.searches
            ],
        },
    )


def write_give_up(sample: Any, trajectory: Trajectory, stop: StopReason, filler_id: int) -> None:
    """The one form of a rollout that must not be trained: one masked token, reward 0 kept, sample marked for removal.

    slime keeps the sample's place in its group, so it must stay well-formed: `filler_id` stands for a response.
    """
    sample.tokens = [*(trajectory.prompt_ids or [filler_id]), filler_id]
    sample.response = ""
    sample.response_length = 1
    sample.loss_mask = [0]
    sample.rollout_log_probs = [0.0] if trajectory.track_log_probs else None
    sample.reward = 0.0
    sample.status = sample.Status.TRUNCATED
    if hasattr(sample, "remove_sample"):
        sample.remove_sample = True
    if hasattr(sample, "rollout_top_p_token_ids"):  # which slime wants of every sample, if of any
        sample.rollout_top_p_token_ids, sample.rollout_top_p_token_offsets = [], [0, 0]
    add_info(
        sample,
        {
            "stop_reason": stop.value,
            "gave_up": True,
            "turns": 0,
            "corrections": 0,
            "segments": [],
            "search_counts": _search_counts(trajectory),
            "searches": [],
        },
    )


def count_engine_work(args: Any, sample: Any, trajectory: Trajectory) -> None:
    """Adds to slime's own counters, where the version has them, what the engine did for this sample."""
    if not hasattr(sample, "prefix_cache_info"):
        return
    for meta_info in trajectory.meta_infos:
        numbers = {key: value for key, value in meta_info.items() if type(value) is int}
        sample.prefix_cache_info.add(meta_info=numbers)
        if getattr(args, "sglang_speculative_algorithm", None):
            sample.spec_info.add(meta_info=numbers)


def _search_counts(trajectory: Trajectory) -> dict[str, int]:
    """How many queries there were, how many of them failed, and where the other answers came from."""
    origins = Counter("failed" if result.error else result.origin for result in trajectory.searches)
    return {"queries": len(trajectory.searches)} | {
        origin: origins[origin] for origin in ("backend", "cache", "shared", "failed")
    }


def _ends_of_turns(trajectory: Trajectory, tokenizer: Any) -> list[str]:
    """The special tokens that the model ended its turns with."""
    turns = [segment.text for segment in trajectory.segments if segment.source == "model"]
    return sorted({turn[len(strip_end(tokenizer, turn)) :] for turn in turns} - {""})


def _status(sample: Any, stop: StopReason) -> Any:
    if stop is StopReason.ABORTED:
        return sample.Status.ABORTED
    return sample.Status.COMPLETED if stop is StopReason.ANSWERED else sample.Status.TRUNCATED


def _metadata(sample: Any) -> dict[str, Any]:
    return sample.metadata if isinstance(sample.metadata, dict) else {}  # NaN or None on early slime
