"""slime's hooks for Search-R1: rollouts that search while they reason, and their exact-match reward.

    --custom-generate-function-path generate_with_search.generate
    --custom-rm-path generate_with_search.reward_func
    --custom-reward-post-process-path generate_with_search.reward_post_process      (optional: see README)
    --custom-rollout-log-function-path generate_with_search.log_rollout             (optional: series to watch)
    --custom-eval-rollout-log-function-path generate_with_search.log_eval_rollout
    --dynamic-sampling-filter-path generate_with_search.keep_group                  (optional: GROUP_FILTER)
    --rollout-all-samples-process-path generate_with_search.process_all_groups      (optional: series of all groups)
    --custom-tis-function-path generate_with_search.mismatch_figures                (with --get-mismatch-metrics)

In the sets of --eval-config: exact_match as custom_rm_path, generate_closed_book as custom_generate_function_path.

As in the paper (arXiv:2503.09516): <think>, <search> and <answer> tags, the top passages in <information>, a
correction after an invalid step, three turns and a last one in which only an answer counts, loss on the model's own
tokens. Unlike in the paper, no text is ever encoded twice: the engine is sent ids, and its ids are kept as they came.
A rollout that fails for no fault of the model is discarded and not trained; it never ends the job.
"""

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from slime.rollout.filter_hub.base_types import DynamicFilterOutput
from slime.rollout.sglang_rollout import GenerateState
from slime.utils.misc import load_function
from slime.utils.types import Sample

import qa_em_format
from search_rollout.collapse_guard import CollapseGuard
from search_rollout.collapse_guard import act_on as act_on_collapse
from search_rollout.config import ConfigError, RewardScores, SearchConfig, load_config
from search_rollout.engine.client import call_params
from search_rollout.engine.sglang_reply import EngineError
from search_rollout.engine.tracking import RouterMismatch
from search_rollout.group_filter import GroupSteps
from search_rollout.rewards import group_normalised
from search_rollout.runtime import Rollout, Runtime, check_slime_args, engine_url
from search_rollout.samples import fields as sample_fields
from search_rollout.samples.bare_text import tool_record, xml_record
from search_rollout.samples.record import RecordError, RolloutRecord, is_discarded, record_of, store_score
from search_rollout.samples.resume import interrupted_rollout, resume_state
from search_rollout.samples.slime_logging import SeriesLogger
from search_rollout.samples.top_p_replay import replays_top_p, write_top_p_replay
from search_rollout.search.searcher import PassageSource, search_all
from search_rollout.search.usage import SearchUsage
from search_rollout.timeline import follow
from search_rollout.trajectory import Segment, StopReason, Trajectory, opens_thought

logger = logging.getLogger(__name__)

SEARCH_R1_CONFIGS = {
    "max_turns": 3,  # searches and corrections; one more engine call is kept for the answer
    "topk": 3,  # passages per search
    "search_concurrency": 256,  # searches under way at once
    "reward_preset": "default",  # any other replaces the next three scores, and two more
    "format_score": 0.2,  # reward for a valid format with a wrong answer
    "final_format_score": 0.0,  # reward for a wrong answer in an invalid format
    "retrieval_score": 0.0,  # reward for retrieving the answer but answering wrong
    "max_context_length": 16384,  # tokens, prompt and response together
    "max_obs_tokens": 500,  # tokens per observation
    "answer_reserve_tokens": 256,  # tokens kept free after an observation
    "max_tool_calls": 8,  # calls per turn, and queries per call, in chat mode
}

# slime's advantage estimators that work on rewards relative to their group.
DIVIDED_BY_DEVIATION = ("grpo", "gspo", "cispo")
LESS_THE_MEAN = (*DIVIDED_BY_DEVIATION, "reinforce_plus_plus_baseline")


async def generate(args: Any, sample: Sample, sampling_params: dict, evaluation: bool = False) -> Sample:
    """Rolls out one sample and writes the trajectory into it.

    Raises ConfigError for a wrong setting; any other failure discards the sample.
    """
    return await _generate(args, _config(args), sample, sampling_params, evaluation)


async def generate_closed_book(args: Any, sample: Sample, sampling_params: dict, evaluation: bool = False) -> Sample:
    """The same from memory: one turn, and no search is run. For the control set of --eval-config."""
    # The turn that answers is the only one.
    config = dataclasses.replace(_config(args), llm_api_mode="generate", token_tracking_mode="manual", max_turns=0)
    return await _generate(args, config, sample, sampling_params, evaluation)


async def _generate(args: Any, config: SearchConfig, sample: Sample, sampling_params: dict, evaluation: bool) -> Sample:
    check_slime_args(args, config, sampling_params)
    resumable = getattr(args, "partial_rollout", False) and not replays_top_p(sampling_params)
    interrupted = interrupted_rollout(args, sample) if resumable else None
    sample_fields.reset(sample)
    follow(sample)
    runtime = rollout = None
    try:
        runtime = _runtime(args, config)
        rollout = await runtime.begin(args, sample, sampling_params, evaluation, interrupted)
        stop = await roll_out(runtime, rollout, sampling_params)
        if stop is not StopReason.ABORTED:
            await rollout.tracking.verify(rollout.trajectory, rollout.headers)
            if replays_top_p(sampling_params) and not stop.discards:
                write_top_p_replay(args, sample, rollout.trajectory)
    except ConfigError:
        raise
    except Exception as error:
        stop = _stop_after(error, sample, aborted=runtime is not None and runtime.aborted())
    record = rollout.record(stop) if rollout else RolloutRecord(stop)
    if stop is StopReason.ABORTED and resumable and rollout:
        record.resume = resume_state(rollout.trajectory, rollout.tracking)
    elif rollout:
        rollout.trajectory.drop_unscored()
    log_probs = runtime.tracks_log_probs(sampling_params) if runtime else config.track_log_probs
    trajectory = rollout.trajectory if rollout else Trajectory(0, log_probs)
    _write(args, sample, trajectory, record, runtime, evaluation=evaluation)
    logger.debug("rollout done: index=%s tokens=%d stop=%s", sample.index, sample.response_length, stop.value)
    return sample


async def roll_out(
    runtime: Runtime, rollout: Rollout, sampling_params: dict, watch: Callable[[Segment], None] | None = None
) -> StopReason:
    """The algorithm: complete, parse, observe, until an answer or a limit. It may begin anywhere between two steps.

    `watch` is called with each turn and each message as it comes.
    """
    config, trajectory, protocol = runtime.config, rollout.trajectory, rollout.protocol
    watch = watch or (lambda segment: None)
    if not trajectory.prompt_ids:
        return StopReason.EMPTY_PROMPT
    while not runtime.aborted():
        if trajectory.needs_reply:
            if stop := await _complete(runtime, rollout, sampling_params):
                return stop
            watch(trajectory.segments[-1])
        cut = trajectory.finish == "length"
        text = trajectory.segments[-1].text
        action = protocol.parse(text, think_opened=trajectory.turn_began_in_thought, ended=not cut)
        turn = rollout.act_on(action)
        if action.kind == "answer":
            return StopReason.ANSWERED
        if cut and action.kind == "invalid":
            return StopReason.CALL_LIMIT if trajectory.room else StopReason.CONTEXT_FULL
        if trajectory.turns > config.max_turns:
            return StopReason.TURNS_USED

        if action.kind == "search":
            if action.queries and trajectory.room < config.max_obs_tokens + config.answer_reserve_tokens:
                return StopReason.NO_ROOM_TO_OBSERVE
            began = time.monotonic()
            results = await search_all(runtime.search, action.queries, runtime.aborted)
            rollout.search_seconds += time.monotonic() - began
            if results is None:
                return StopReason.ABORTED
            turn.results = results
            if config.search_failure_mode == "discard" and any(result.error for result in results):
                return StopReason.SEARCH_FAILED
            message = protocol.observe(action, results, trajectory.response_ids[-1])
        else:
            message = protocol.correct(trajectory.response_ids[-1], trajectory.ended_turn)
        if trajectory.room < len(message.ids) + config.answer_reserve_tokens:
            return StopReason.NO_ROOM_TO_OBSERVE
        trajectory.append_env(message)
        rollout.tracking.tell(message)
        watch(trajectory.segments[-1])
    return StopReason.ABORTED


async def _complete(runtime: Runtime, rollout: Rollout, sampling_params: dict) -> StopReason | None:
    """One engine call: a turn of the model, or the rest of one that an abort left open. None if it came to its end."""
    trajectory = rollout.trajectory
    if trajectory.room < 1:
        return StopReason.CONTEXT_FULL if trajectory.response_ids else StopReason.PROMPT_TOO_LONG
    begun = trajectory.open_ids
    params = call_params(sampling_params, trajectory.room, rollout.protocol.stop_strings, begun=len(begun))
    reply = await rollout.tracking.complete(trajectory, params, rollout.headers, runtime.aborted)
    if reply.finish == "abort" and trajectory.unscored:
        return StopReason.ABORTED
    trajectory.append_model(reply, runtime.decode([*begun, *reply.ids]))
    return StopReason.ABORTED if reply.finish == "abort" else None


def _stop_after(error: Exception, sample: Sample, *, aborted: bool) -> StopReason:
    """What an exception out of a rollout means for its sample; logs it."""
    if isinstance(error, sample_fields.SampleError):
        logger.warning("sample %s discarded: %s", sample.index, error)
        return StopReason.BAD_SAMPLE
    if isinstance(error, EngineError):
        logger.log(logging.DEBUG if aborted else logging.WARNING, "sample %s: %s", sample.index, error)
        failed = StopReason.ROUTER_MISMATCH if isinstance(error, RouterMismatch) else StopReason.ENGINE_FAILED
        return StopReason.ABORTED if aborted else failed
    # A fault of ours: logged with its traceback, and no reason to end the job.
    logger.error("sample %s discarded", sample.index, exc_info=error)
    return StopReason.INTERNAL_ERROR


def _write(
    args: Any,
    sample: Sample,
    trajectory: Trajectory,
    record: RolloutRecord,
    runtime: Runtime | None,
    *,
    evaluation: bool,
) -> None:
    """Writes the result of a rollout into the sample."""
    if runtime is None or record.discarded:
        filler = (runtime.tokenizer.eos_token_id if runtime else None) or 0
        reward = sample_fields.discarded_reward(args, evaluation=evaluation)
        sample_fields.write_discarded(sample, trajectory, record, filler_id=filler, reward=reward)
    else:
        sample_fields.write_rollout(sample, trajectory, record, runtime.decode)
    sample_fields.count_engine_work(args, sample, trajectory)


async def reward_func(args: Any, sample: Sample | list[Sample], **_: Any) -> float | list[float]:
    """The reward of a sample, or of each of a list, by the table of `qa_em_format.score_trajectory`."""
    return _for_each(args, sample, lambda score: score.reward)


async def exact_match(args: Any, sample: Sample | list[Sample], **_: Any) -> float | list[float]:
    """1.0 for an answer that equals a gold answer, else 0.0, whatever training rewards. For evaluations."""
    return _for_each(args, sample, lambda score: float(score.exact_match))


def _for_each(
    args: Any, sample: Sample | list[Sample], figure: Callable[[qa_em_format.Score], float]
) -> float | list[float]:
    """The figure of a sample's score, or of each of a list; 0.0 if discarded, which is nothing that the model did."""
    scores = [_score(_config(args), one) for one in (sample if isinstance(sample, list) else [sample])]
    figures = [figure(score) if score else 0.0 for score in scores]
    return figures if isinstance(sample, list) else figures[0]


def _score(config: SearchConfig, sample: Sample) -> qa_em_format.Score | None:
    """The score, which is added to the sample's record; None for a discarded sample."""
    record = _record(config, sample)
    if record.discarded:
        return None
    golds = qa_em_format.gold_answers(sample.label)
    if not golds:
        logger.warning("sample %s has no gold answer in its label: %r", sample.index, sample.label)
    score = qa_em_format.score_trajectory(
        record.answer,
        golds,
        valid_format=record.valid_format,
        searched=record.searched,
        passages=(f"{passage.title}\n{passage.text}" for passage in record.passages),
        **{name: getattr(config, name) for name in RewardScores._fields},
    )
    store_score(sample, score._asdict())
    return score


def _record(config: SearchConfig, sample: Sample) -> RolloutRecord:
    """What the rollout recorded; read from the response's text if another rollout function made the sample."""
    try:
        if recorded := record_of(sample):
            return recorded
    except RecordError as error:
        logger.warning("sample %s is scored by its text: %s", sample.index, error)
    opened = isinstance(sample.prompt, str) and opens_thought(sample.prompt)
    if config.llm_api_mode == "generate":
        return xml_record(sample.response, think_opened=opened)
    form = "hermes" if config.tool_call_format == "auto" else config.tool_call_format
    return tool_record(sample.response, tool_format=form, max_calls=config.max_tool_calls, think_opened=opened)


def reward_post_process(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """Raw rewards, and rewards normalised as slime does it, except that a discarded sample counts in no group.

    For --custom-reward-post-process-path. A discarded sample gets 0, and so does one that is alone in its group.
    slime's own curves are then of exact match and turns: see `samples.fields.describe_to_slime`.
    """
    sample_fields.describe_to_slime(samples)
    key = getattr(args, "reward_key", None)
    rewards: list[Any] = [sample.reward[key] if key else sample.reward for sample in samples]  # type: ignore[index]
    estimator = getattr(args, "advantage_estimator", None)
    if estimator not in LESS_THE_MEAN or not args.rewards_normalization:
        return rewards, rewards
    kept = [not is_discarded(sample) for sample in samples]
    # slime's groups are neighbours; a batch of another size it takes for one group.
    size = args.n_samples_per_prompt
    size = size if len(samples) == size * args.rollout_batch_size else len(samples)
    by_deviation = args.grpo_std_normalization and estimator in DIVIDED_BY_DEVIATION
    return rewards, group_normalised(rewards, kept, size=size, by_deviation=by_deviation)


def keep_group(args: Any, samples: Sequence[Sample], **_: Any) -> DynamicFilterOutput:
    """Whether the group is trained, by GROUP_FILTER: see `search_rollout.group_filter`. Raises ConfigError.

    For --dynamic-sampling-filter-path.
    """
    reason = _steps.judge(args, _config(args), samples)
    return DynamicFilterOutput(keep=reason is None, reason=reason)


def process_all_groups(args: Any, all_groups: Sequence[Sequence[Sample]], data_source: Any) -> None:
    """Ends a step, so that its series cover dropped groups too. For --rollout-all-samples-process-path."""
    args.processed_group_count = len(all_groups)  # slime's contract test of this hook looks for it
    step, groups = _steps.finish(args, all_groups, data_source)
    _series.hold(groups, step.series(_config(args).group_filter))


def mismatch_figures(args: Any, *, pg_loss: Any, **batch: Any) -> tuple[Any, Any, dict[str, Any]]:
    """slime's figures of truncated importance weights; the loss is unchanged unless --use-tis is given.

    For --custom-tis-function-path with --get-mismatch-metrics; docs/MISMATCH.md says how to read them.
    """
    truncate = load_function("slime.backends.megatron_utils.loss.vanilla_tis_function")
    weighted, masks, figures = truncate(args, pg_loss=pg_loss, **batch)
    return weighted if args.use_tis else pg_loss, masks, figures


def log_rollout(
    rollout_id: int,
    args: Any,
    samples: Sequence[Any],
    rollout_extra_metrics: Mapping[str, Any] | None,
    rollout_time: float,
) -> bool:
    """Logs the series of `search_rollout.metrics`; False, so that slime logs its own series as well.

    For --custom-rollout-log-function-path. Raises CollapseDetected, which ends the job, with COLLAPSE_GUARD=stop.
    """
    if not getattr(args, "load_debug_rollout_data", None):  # from an earlier run: slime logs nothing either
        series = _series.log(rollout_id, args, "rollout", {"rollout": samples})
        if alarm := _guard.observe(rollout_id, series.get("rollout", {})):
            act_on_collapse(alarm, _config(args).collapse_guard, getattr(args, "save", None))
    args.logged_rollout_id = rollout_id  # slime's contract test of this hook looks for it
    return False


def log_eval_rollout(rollout_id: int, args: Any, data: Mapping[str, Any], extra_metrics: Any = None) -> bool:
    """The same for each data set of an evaluation. For --custom-eval-rollout-log-function-path."""
    _series.log(rollout_id, args, "eval", {f"eval/{name}": rollouts.get("samples") for name, rollouts in data.items()})
    args.logged_eval_rollout_id = rollout_id
    return False


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    """slime's own rollout function, whose rollouts are then logged as above.

    For --rollout-function-path of a slime that has no log hooks.
    """
    slime_rollout = load_function("slime.rollout.sglang_rollout.generate_rollout")
    output = slime_rollout(args, rollout_id, data_source, evaluation=evaluation)
    if evaluation:
        log_eval_rollout(rollout_id, args, output.data)
    else:
        log_rollout(rollout_id, args, output.samples, output.metrics, 0.0)
    return output


_settings: tuple[Any, SearchConfig] | None = None  # slime's args, and what was read for them
_usage = SearchUsage()  # of all loops
_series = SeriesLogger(_usage)
_steps = GroupSteps()
_guard = CollapseGuard()
_runtimes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple, Runtime]] = WeakKeyDictionary()


def _config(args: Any) -> SearchConfig:
    """The settings: read once per process, and again only if slime hands us other args."""
    global _settings
    if _settings is None or _settings[0] is not args:
        _settings = args, load_config(SEARCH_R1_CONFIGS, os.environ, args)
    return _settings[1]


def _runtime(args: Any, config: SearchConfig) -> Runtime:
    """The running event loop's Runtime for these settings; connections and semaphores belong to one loop each."""
    runtimes = _runtimes.setdefault(asyncio.get_running_loop(), {})
    key = engine_url(args), config
    if key not in runtimes:
        runtimes[key] = Runtime(*key, GenerateState(args), web=_web_search(config), usage=_usage)
    return runtimes[key]


def _web_search(config: SearchConfig) -> PassageSource | None:
    if config.search_backend != "google":
        return None
    from google_search_server import GoogleSearch  # only where it is used

    return GoogleSearch(config)


def search_usage() -> dict[str, float]:
    """What the searches of this process have come to, and cost: see `SearchUsage.snapshot`."""
    return _usage.snapshot()


async def close() -> None:
    """Releases the running event loop's connections; for programs that end in an orderly way, such as tests."""
    for runtime in _runtimes.pop(asyncio.get_running_loop(), {}).values():
        await runtime.close()
