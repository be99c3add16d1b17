"""slime's hooks for Search-R1: rollouts that search while they reason, and their exact-match reward.

    --custom-generate-function-path generate_with_search.generate
    --custom-rm-path generate_with_search.reward_func
    --custom-reward-post-process-path generate_with_search.reward_post_process      (optional: see README)
    --custom-rollout-log-function-path generate_with_search.log_rollout             (optional: series to watch)
    --custom-eval-rollout-log-function-path generate_with_search.log_eval_rollout

As in the paper (arXiv:2503.09516): <think>, <search> and <answer> tags, the top passages in <information>, a
correction after an invalid step, three turns and a last one in which only an answer counts, loss on the model's own
tokens. Unlike it, no text is ever encoded twice: the engine is sent ids, and its ids are kept as they came. A rollout
that fails for no fault of the model is given up and not trained; it never ends the job.
"""

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from slime.rollout.sglang_rollout import GenerateState
from slime.utils.misc import load_function
from slime.utils.types import Sample

import qa_em_format
from search_rollout.config import ConfigError, SearchConfig, load_config
from search_rollout.engine.client import EngineError, call_params
from search_rollout.engine.tracking import RouterMismatch, unscored_log_probs
from search_rollout.metrics import rollout_metrics, search_cost
from search_rollout.rewards import group_normalised
from search_rollout.runtime import Rollout, Runtime, check_slime_args, engine_url
from search_rollout.samples import fields as sample_fields
from search_rollout.samples.resume import interrupted_rollout, resume_state
from search_rollout.samples.top_p_replay import replays_top_p, write_top_p_replay
from search_rollout.search.searcher import PassageSource, search_all
from search_rollout.search.usage import SearchUsage
from search_rollout.trajectory import StopReason, Trajectory

logger = logging.getLogger(__name__)

SEARCH_R1_CONFIGS = {
    "max_turns": 3,  # searches and corrections; one more engine call is kept for the answer
    "topk": 3,  # passages of a search
    "search_concurrency": 256,  # searches under way at once
    "reward_preset": "default",  # any other stands in for the next three, and for two further scores
    "format_score": 0.2,  # what a valid format is worth
    "final_format_score": 0.0,  # what an answer in an invalid format is worth
    "retrieval_score": 0.0,  # what finding a document with the answer is worth, without giving it
    "max_context_length": 16384,  # tokens, prompt and response together
    "max_obs_tokens": 500,  # of an observation
    "answer_reserve_tokens": 256,  # kept free behind an observation
    "max_tool_calls": 8,  # of a turn, and queries of a call, in chat mode
}

# slime's advantage estimators that work on rewards relative to their group.
DIVIDED_BY_DEVIATION = ("grpo", "gspo", "cispo")
LESS_THE_MEAN = (*DIVIDED_BY_DEVIATION, "reinforce_plus_plus_baseline")


async def generate(args: Any, sample: Sample, sampling_params: dict, evaluation: bool = False) -> Sample:
    """Rolls out one sample and writes the trajectory into it.

    Raises ConfigError on a wrong setting; any other trouble gives the sample up.
    """
    check_slime_args(args, _config(args), sampling_params)
    runtime, rollout = _runtime(args), None
    replay = replays_top_p(sampling_params)
    resumable = getattr(args, "partial_rollout", False) and not replay
    interrupted = interrupted_rollout(args, sample) if resumable else None
    sample_fields.reset(sample)
    try:
        rollout = await runtime.begin(args, sample, sampling_params, evaluation, interrupted)
        sample_fields.add_info(sample, {"trajectory_id": rollout.trajectory_id})
        stop = await roll_out(runtime, rollout, sampling_params)
        if stop is not StopReason.ABORTED:
            await rollout.tracking.verify(rollout.trajectory, rollout.headers)
            if replay and not stop.gives_up:
                write_top_p_replay(args, sample, rollout.trajectory)
    except sample_fields.SampleError as error:
        logger.warning("sample %s given up: %s", sample.index, error)
        stop = StopReason.BAD_SAMPLE
    except EngineError as error:
        failed = StopReason.ROUTER_MISMATCH if isinstance(error, RouterMismatch) else StopReason.ENGINE_FAILED
        stop = StopReason.ABORTED if runtime.aborted() else failed
        logger.log(logging.DEBUG if runtime.aborted() else logging.WARNING, "sample %s: %s", sample.index, error)
    except ConfigError:
        raise
    except Exception:  # a fault of ours: told with its traceback, and no reason to end the job
        logger.exception("sample given up: index=%s", sample.index)
        stop = StopReason.INTERNAL_ERROR
    trajectory = rollout.trajectory if rollout else Trajectory(0, runtime.tracks_log_probs(sampling_params))
    if stop is StopReason.ABORTED and resumable and rollout:
        sample_fields.add_info(sample, {"resume": resume_state(trajectory, rollout.tracking)})
    else:
        trajectory.drop_unscored()
    if stop.gives_up:
        sample_fields.write_give_up(sample, trajectory, stop, runtime.tokenizer.eos_token_id or 0)
    else:
        sample_fields.write_rollout(sample, trajectory, stop, runtime.tokenizer)
    sample_fields.count_engine_work(args, sample, trajectory)
    logger.debug("rollout done: index=%s tokens=%d stop=%s", sample.index, sample.response_length, stop.value)
    return sample


async def roll_out(runtime: Runtime, rollout: Rollout, sampling_params: dict) -> StopReason:
    """The algorithm: complete, parse, observe, until an answer or a limit. It may begin anywhere between two steps."""
    config, trajectory, protocol = runtime.config, rollout.trajectory, rollout.protocol
    if not trajectory.prompt_ids:
        return StopReason.EMPTY_PROMPT
    while not runtime.aborted():
        if trajectory.needs_reply and (stop := await _complete(runtime, rollout, sampling_params)):
            return stop
        cut = trajectory.finish == "length"
        turn = trajectory.segments[-1].text
        action = protocol.parse(turn, think_opened=trajectory.turn_began_in_thought, ended=not cut)
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
            trajectory.search_seconds += time.monotonic() - began
            if results is None:
                return StopReason.ABORTED
            trajectory.searches += results
            if config.search_failure_mode == "give_up" and any(result.error for result in results):
                return StopReason.SEARCH_FAILED
            trajectory.mistakes.update(call.error for call in action.calls if call.error)
            message = protocol.observe(action, results, trajectory.response_ids[-1])
        else:
            message = protocol.correct(trajectory.response_ids[-1], trajectory.ended_turn)
        if trajectory.room < len(message.ids) + config.answer_reserve_tokens:
            return StopReason.NO_ROOM_TO_OBSERVE
        trajectory.append_env(message)
        rollout.tracking.tell(message)
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
    trajectory.append_model(
        reply.ids,
        reply.log_probs,
        runtime.decode([*begun, *reply.ids]),
        unscored_log_probs(reply, trajectory),
        finish=reply.finish,
        ended_turn=reply.ended_turn,
        weight_version=reply.weight_version,
        meta_info=reply.meta_info,
    )
    return StopReason.ABORTED if reply.finish == "abort" else None


async def reward_func(args: Any, sample: Sample | list[Sample], **_: Any) -> float | list[float]:
    """The reward of a sample, or of each of a list, by the table of `qa_em_format.score_trajectory`."""
    config = _config(args)
    if isinstance(sample, list):
        return [_reward(config, one) for one in sample]
    return _reward(config, sample)


def _reward(config: SearchConfig, sample: Sample) -> float:
    info = sample_fields.rollout_info(sample)
    if info.get("gave_up"):
        return 0.0  # preset by write_give_up, and nothing that the model did
    golds = qa_em_format.gold_answers(sample.label)
    if not golds:
        logger.warning("sample %s has no gold answer in its label: %r", sample.index, sample.label)
    score = qa_em_format.score_trajectory(
        info.get("segments") or qa_em_format.split_response(sample.response),
        golds,
        format_score=config.format_score,
        final_format_score=config.final_format_score,
        retrieval_score=config.retrieval_score,
        no_search_penalty=config.no_search_penalty,
        answer_metric=config.answer_metric,
        style="tools" if config.llm_api_mode == "chat" else "xml",
        think_opened=bool(info.get("think_opened")),
        end_of_turn=info.get("end_of_turn", ()),
        cut_off=info.get("stop_reason", "answered") != "answered",
    )
    sample_fields.add_info(sample, {"score": score._asdict()})
    return score.reward


def reward_post_process(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """Raw rewards, and rewards normalised as slime does it, except that a given-up sample counts in no group.

    For --custom-reward-post-process-path. A given-up sample gets 0, and so does one that is alone in its group.
    """
    rewards = [sample.get_reward_value(args) for sample in samples]
    if args.advantage_estimator not in LESS_THE_MEAN or not args.rewards_normalization:
        return rewards, rewards
    kept = [not sample_fields.rollout_info(sample).get("gave_up") for sample in samples]
    # slime's groups are neighbours; a batch of another size it takes for one group.
    size = args.n_samples_per_prompt
    size = size if len(samples) == size * args.rollout_batch_size else len(samples)
    by_deviation = args.grpo_std_normalization and args.advantage_estimator in DIVIDED_BY_DEVIATION
    return rewards, group_normalised(rewards, kept, size=size, by_deviation=by_deviation)


def log_rollout(
    rollout_id: int, args: Any, samples: Sequence[Any], extra_metrics: Mapping[str, Any] | None, rollout_time: float
) -> bool:
    """Logs what `search_rollout.metrics` says of a rollout; False, so that slime logs its own series as well.

    For --custom-rollout-log-function-path.
    """
    if not getattr(args, "load_debug_rollout_data", None):  # which is of an earlier run: slime logs nothing either
        _log_series(rollout_id, args, "rollout", {"rollout": samples})
    return False


def log_eval_rollout(rollout_id: int, args: Any, data: Mapping[str, Any], extra_metrics: Any = None) -> bool:
    """The same of an evaluation, for each of its data sets. For --custom-eval-rollout-log-function-path."""
    _log_series(rollout_id, args, "eval", {f"eval/{name}": rollouts.get("samples") for name, rollouts in data.items()})
    return False


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    """slime's own rollout function, whose rollouts are then logged as above.

    For --rollout-function-path of a slime that has no log hooks.
    """
    slimes = load_function("slime.rollout.sglang_rollout.generate_rollout")
    output = slimes(args, rollout_id, data_source, evaluation=evaluation)
    if evaluation:
        log_eval_rollout(rollout_id, args, output.data)
    else:
        log_rollout(rollout_id, args, output.samples, output.metrics, 0.0)
    return output


def _log_series(rollout_id: int, args: Any, kind: str, samples: Mapping[str, Any]) -> None:
    """By slime's loggers, with slime's prefixes and step: W&B then plots ours over the same axis. Never raises."""
    global _logged_usage
    try:
        series = {kind: search_cost(search_usage(), since=_logged_usage)}
        _logged_usage = search_usage()
        for prefix, some in samples.items():
            series[prefix] = series.get(prefix, {}) | rollout_metrics(some, getattr(args, "reward_key", None))
        metrics = {f"{prefix}/search_r1/{name}": value for prefix in series for name, value in series[prefix].items()}
        logger.info("%s %s: %s", kind, rollout_id, metrics)
        step, step_key = _of_slime("metric_utils.compute_rollout_step")(args, rollout_id), f"{kind}/step"
        _of_slime("logging_utils.log", "tracking_utils.log")(args, {**metrics, step_key: step}, step_key=step_key)
    except Exception:  # a plot is no reason to end the job
        logger.exception("%s %s: the series could not be logged", kind, rollout_id)


def _of_slime(*names: str) -> Any:
    """The first of these that this slime has: its loggers have moved between modules. Raises ImportError."""
    for package in ("slime.observability", "slime.utils"):
        for module, _, name in (path.partition(".") for path in names):
            try:
                return getattr(importlib.import_module(f"{package}.{module}"), name)
            except (ModuleNotFoundError, AttributeError):
                continue
    raise ImportError(f"this slime has no {' or '.join(names)}")


_settings: tuple[Any, SearchConfig] | None = None  # slime's args, and what was read for them
_usage = SearchUsage()  # of all loops
_logged_usage = _usage.snapshot()  # when it was last logged
_runtimes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple, Runtime]] = WeakKeyDictionary()


def _config(args: Any) -> SearchConfig:
    """The settings: read once per process, and again only if slime hands us other args."""
    global _settings
    if _settings is None or _settings[0] is not args:
        _settings = args, load_config(SEARCH_R1_CONFIGS, os.environ, args)
    return _settings[1]


def _runtime(args: Any) -> Runtime:
    """The running event loop's Runtime for these settings; connections and semaphores belong to one loop each."""
    runtimes = _runtimes.setdefault(asyncio.get_running_loop(), {})
    key = engine_url(args), _config(args)
    if key not in runtimes:
        runtimes[key] = Runtime(*key, GenerateState(args), web=_web_search(_config(args)), usage=_usage)
    return runtimes[key]


def _web_search(config: SearchConfig) -> PassageSource | None:
    if config.search_backend != "google":
        return None
    from google_search_server import from_config  # only where it is used

    return from_config(config)


def search_usage() -> dict[str, float]:
    """What the searches of this process have come to, and cost: see `SearchUsage.snapshot`."""
    return _usage.snapshot()


async def close() -> None:
    """Releases the running event loop's connections; for programs that end in an orderly way, such as tests."""
    for runtime in _runtimes.pop(asyncio.get_running_loop(), {}).values():
        await runtime.close()
