"""slime's two hooks for Search-R1: rollouts that search while they reason, and their exact-match reward.

    --custom-generate-function-path generate_with_search.generate
    --custom-rm-path generate_with_search.reward_func

As in the paper (arXiv:2503.09516): <think>, <search> and <answer> tags, the top passages in <information>, a
correction after an invalid step, three turns and a last one in which only an answer counts, loss on the model's own
tokens. Unlike it, no text is ever encoded twice: the engine is sent ids, and its ids are kept as they came. A rollout
that fails for no fault of the model is given up and not trained; it never ends the job.
"""

import asyncio
import logging
import os
import time
from typing import Any
from weakref import WeakKeyDictionary

from slime.rollout.sglang_rollout import GenerateState
from slime.utils.types import Sample

import qa_em_format
from search_rollout import sample_fields
from search_rollout.config import ConfigError, SearchConfig, load_config
from search_rollout.policy import EngineError, call_params
from search_rollout.retrieval import search_all
from search_rollout.runtime import Rollout, Runtime, check_slime_args, engine_url, opens_thought
from search_rollout.tracking import RouterMismatch, unscored_log_probs
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


async def generate(args: Any, sample: Sample, sampling_params: dict, evaluation: bool = False) -> Sample:
    """Rolls out one sample and writes the trajectory into it.

    Raises ConfigError on a wrong setting; any other trouble gives the sample up.
    """
    check_slime_args(args, sample)
    runtime = _runtime(args)
    sample_fields.reset(sample)
    trajectory = Trajectory(0, runtime.tracks_log_probs(sampling_params))
    try:
        rollout = await runtime.begin(args, sample, sampling_params, evaluation)
        trajectory = rollout.trajectory
        sample_fields.add_info(sample, {"trajectory_id": rollout.trajectory_id})
        stop = await roll_out(runtime, rollout, sampling_params)
        trajectory.drop_unscored()
        if stop is not StopReason.ABORTED:
            await rollout.tracking.verify(trajectory, rollout.headers)
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
    if stop.gives_up:
        sample_fields.write_give_up(sample, trajectory, stop, runtime.tokenizer.eos_token_id or 0)
    else:
        sample_fields.write_rollout(sample, trajectory, stop, runtime.tokenizer)
    logger.debug("rollout done: index=%s tokens=%d stop=%s", sample.index, sample.response_length, stop.value)
    return sample


async def roll_out(runtime: Runtime, rollout: Rollout, sampling_params: dict) -> StopReason:
    """The algorithm: complete, parse, observe, until an answer or a limit. Every engine call is a turn."""
    config, trajectory, protocol = runtime.config, rollout.trajectory, rollout.protocol
    if not trajectory.prompt_ids:
        return StopReason.EMPTY_PROMPT
    thinking = trajectory.think_opened
    for turn in range(config.max_turns + 1):
        if runtime.aborted():
            return StopReason.ABORTED
        if trajectory.room < 1:
            return StopReason.CONTEXT_FULL if trajectory.response_ids else StopReason.PROMPT_TOO_LONG

        params = call_params(sampling_params, trajectory.room, protocol.stop_strings)
        reply = await rollout.tracking.complete(trajectory, params, rollout.headers, runtime.aborted)
        if reply.finish == "abort" and trajectory.unscored:
            return StopReason.ABORTED
        text = runtime.decode(reply.ids)
        scores = unscored_log_probs(reply, trajectory)
        trajectory.append_model(reply.ids, reply.log_probs, text, reply.weight_version, scores)
        if reply.finish == "abort":
            return StopReason.ABORTED

        action = protocol.parse(text, think_opened=thinking, ended=reply.finish != "length")
        if action.kind == "answer":
            return StopReason.ANSWERED
        if reply.finish == "length" and action.kind == "invalid":
            return StopReason.CALL_LIMIT if trajectory.room else StopReason.CONTEXT_FULL
        if turn == config.max_turns:
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
            trajectory.mistakes.update(call.error for call in action.calls if call.error)
            message = protocol.observe(action, results, reply.ids[-1])
        else:
            message = protocol.correct(reply.ids[-1], reply.ended_turn)
        if trajectory.room < len(message.ids) + config.answer_reserve_tokens:
            return StopReason.NO_ROOM_TO_OBSERVE
        trajectory.append_env(message)
        rollout.tracking.tell(message)
        thinking = opens_thought(message.text)
    raise AssertionError("the last turn always returns")


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


_settings: tuple[Any, SearchConfig] | None = None  # slime's args, and what was read for them
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
        runtimes[key] = Runtime(*key, GenerateState(args))
    return runtimes[key]


async def close() -> None:
    """Releases the running event loop's connections; for programs that end in an orderly way, such as tests."""
    for runtime in _runtimes.pop(asyncio.get_running_loop(), {}).values():
        await runtime.close()
