"""What all rollouts of one event loop share: settings, tokenizer, and the clients of engine and search."""

import functools
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_rollout.config import ConfigError, SearchConfig
from search_rollout.engine.client import EngineClient, call_params
from search_rollout.engine.tracking import (
    NAMESPACE_HEADER,
    HandlerTracking,
    RadixTracking,
    Tracking,
    check_router,
)
from search_rollout.protocols.base import Action, RolloutProtocol
from search_rollout.protocols.chat_template import decode, encode
from search_rollout.protocols.observation import neutraliser, special_strings
from search_rollout.protocols.tool_formats import ToolFormat, tool_format
from search_rollout.protocols.tools import ToolProtocol
from search_rollout.protocols.xml import XmlProtocol
from search_rollout.samples.fields import Prompt, read_prompt
from search_rollout.samples.record import RolloutRecord, Turn
from search_rollout.samples.resume import Interrupted, settle_open_turn
from search_rollout.samples.top_p_replay import replays_top_p
from search_rollout.search.cache import CacheError, SearchCache
from search_rollout.search.local_retriever import LocalRetriever
from search_rollout.search.searcher import PassageSource, Searcher
from search_rollout.search.usage import SearchUsage
from search_rollout.trajectory import StopReason, Trajectory, opens_thought

logger = logging.getLogger(__name__)

PROMPTS_KEPT = 1024  # as ids: the samples of a group share theirs


@dataclass
class Rollout:
    trajectory: Trajectory
    protocol: RolloutProtocol
    tracking: Tracking
    headers: dict[str, str]  # of every engine call
    trajectory_id: str
    turns: list[Turn] = field(default_factory=list)  # the model's actions and their results
    search_seconds: float = 0.0  # spent waiting for searches

    def act_on(self, action: Action) -> Turn:
        """Records the action of the trajectory's last turn; again, if an abort came before its searches returned."""
        del self.turns[self.trajectory.turns - 1 :]
        self.turns.append(Turn.of(action))
        return self.turns[-1]

    def record(self, stop: StopReason) -> RolloutRecord:
        """The rollout so far; what the trajectory holds is added when it is written into a Sample."""
        return RolloutRecord(stop, self.trajectory_id, turns=self.turns, search_seconds=self.search_seconds)


class Runtime:
    """Made once per event loop, inside it. `state` is slime's GenerateState (`.tokenizer`, `.aborted`).

    `web` finds passages where SEARCH_BACKEND is not local. `usage` counts what searching costs. Raises ConfigError.
    """

    def __init__(
        self,
        base_url: str,
        config: SearchConfig,
        state: Any,
        *,
        web: PassageSource | None = None,
        usage: SearchUsage | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = state.tokenizer
        self._state = state
        self._neutralise = neutraliser(special_strings(self.tokenizer))
        self._encode_prompt = functools.lru_cache(PROMPTS_KEPT)(functools.partial(encode, self.tokenizer))
        self._scale_told = False
        self._router_checked = config.token_tracking_mode == "manual"
        self.engine = EngineClient(base_url, timeout_s=config.engine_timeout_s, retries=config.engine_retries)
        self.search = make_searcher(config, [web] if web else local_retrievers(config), usage)

    def aborted(self) -> bool:
        """True once slime has called the whole rollout off."""
        return bool(self._state.aborted)

    async def begin(
        self,
        args: Any,
        sample: Any,
        sampling_params: Mapping[str, Any],
        evaluation: bool,
        interrupted: Interrupted | None = None,
    ) -> Rollout:
        """A rollout with the sample's prompt, and with the interrupted rollout if one continues from it.

        Raises ConfigError if a mode cannot work here, SampleError if the sample cannot be rolled out.
        """
        if not self._router_checked:
            await check_router(self.engine, self.config.token_tracking_mode)
            self._router_checked = True
        chat = self.config.llm_api_mode == "chat"
        prompt = read_prompt(args, sample, self.tokenizer, with_tools=chat)
        limit, log_probs = _context_limit(args, self.config, evaluation), self.tracks_log_probs(sampling_params)
        rollout = self._rollout(prompt, limit, log_probs, routing_headers(args, sample))
        if interrupted is None:
            return rollout
        rollout.trajectory_id = rollout.headers[NAMESPACE_HEADER] = interrupted.record.trajectory_id
        try:
            interrupted.restore(rollout.trajectory, rollout.tracking, self.decode)
        except (ValueError, KeyError) as error:
            logger.warning("sample %s starts again: its aborted rollout cannot be resumed: %s", sample.index, error)
            return self._rollout(prompt, limit, log_probs, routing_headers(args, sample))
        rollout.turns, rollout.search_seconds = list(interrupted.record.turns), interrupted.record.search_seconds
        begun = len(rollout.trajectory.open_ids)
        params = call_params(sampling_params, rollout.trajectory.room, rollout.protocol.stop_strings, begun=begun)
        stop_ids = {self.tokenizer.eos_token_id, *(params.get("stop_token_ids") or [])}
        exact = self.config.token_tracking_mode == "manual"
        settle_open_turn(rollout.trajectory, self.decode, params, stop_ids=stop_ids, exact=exact)
        return rollout

    def _rollout(self, prompt: Prompt, limit: int, log_probs: bool, headers: Mapping[str, str]) -> Rollout:
        """A rollout that holds only the prompt."""
        ids, simple = list(self._encode_prompt(prompt.text)), self.config.loss_mask_mode == "simple"
        trajectory = Trajectory(limit, log_probs, ids, simple, opens_thought(prompt.text))
        name = uuid.uuid4().hex
        headers = {NAMESPACE_HEADER: name, **headers}
        return Rollout(trajectory, self._protocol(prompt), self._tracking(prompt), headers, name)

    def tracks_log_probs(self, sampling_params: Mapping[str, Any]) -> bool:
        """Whether log-probabilities can be recorded.

        Those of observations are at temperature 1, and those of sampled tokens at the rollout's: with the simple mask
        both are trained, so they must be on one scale.
        """
        if not self.config.track_log_probs or self.config.loss_mask_mode == "strict":
            return self.config.track_log_probs
        if sampling_params.get("temperature", 1.0) == 1.0 and sampling_params.get("top_p", 1.0) == 1.0:
            return True
        if not self._scale_told:
            logger.warning(
                "LOSS_MASK_MODE=simple with a temperature or top_p other than 1: the engine scores observations at "
                "temperature 1, so rollout_log_probs stay None on every such sample."
            )
            self._scale_told = True
        return False

    def decode(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids)

    async def close(self) -> None:
        await self.engine.close()
        await self.search.close()

    def _protocol(self, prompt: Prompt) -> RolloutProtocol:
        shared = self.tokenizer, self._neutralise, self.config.max_obs_tokens, prompt.template_kwargs
        if self.config.llm_api_mode == "generate":
            return XmlProtocol(*shared)
        return ToolProtocol(*shared, tools=prompt.tools, form=self._tool_format, max_calls=self.config.max_tool_calls)

    @functools.cached_property
    def _tool_format(self) -> ToolFormat:
        try:
            return tool_format(self.tokenizer, self.config.tool_call_format)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _tracking(self, prompt: Prompt) -> Tracking:
        match self.config.token_tracking_mode:
            case "router_radix":
                return RadixTracking(self.engine, prompt.text)
            case "router_handler":
                if prompt.messages is None:
                    raise ConfigError(
                        "TOKEN_TRACKING_MODE=router_handler needs prompts that are messages: leave out slime's "
                        "--apply-chat-template, the router applies it."
                    )
                return HandlerTracking(self.engine, prompt.messages, prompt.tools, prompt.template_kwargs)
        return Tracking(self.engine)


def local_retrievers(config: SearchConfig) -> list[PassageSource]:
    return [
        LocalRetriever(url, topk=config.topk, timeout_s=config.search_timeout_s, api_key=config.retrieval_api_key)
        for url in config.retrieval_urls
    ]


def make_searcher(config: SearchConfig, sources: Sequence[PassageSource], usage: SearchUsage | None = None) -> Searcher:
    """The Searcher with its sources. Raises ConfigError if the cache file cannot be used."""
    replay = config.caching == "replay"
    cache = None
    if config.caching != "off":
        try:
            max_age_s = config.search_cache_days * 24 * 3600
            cache = SearchCache(config.search_cache, sources[0].namespace, max_age_s=max_age_s, read_only=replay)
        except CacheError as error:
            raise ConfigError(f"SEARCH_CACHE: {error}. Give a file that this process can write.") from error
    return Searcher(
        sources,
        concurrency=config.search_concurrency,
        timeout_s=config.search_timeout_s,
        retries=config.search_retries,
        usage=usage,
        cache=cache,
        replay=replay,
        budget=config.search_budget,
        usd_per_call=config.google_usd_per_1000 / 1000 if config.search_backend == "google" else 0.0,
    )


def engine_url(args: Any) -> str:
    return f"http://{args.sglang_router_ip}:{args.sglang_router_port}"


def routing_headers(args: Any, sample: Any) -> dict[str, str]:
    """Keeps a conversation on one engine, whose prefix cache knows its earlier turns, if the router goes by a key."""
    session = getattr(sample, "session_id", None)
    if session and getattr(args, "router_policy", None) in ("consistent_hashing", "manual"):
        return {"X-SMG-Routing-Key": session}
    return {}


def check_slime_args(args: Any, config: SearchConfig, sampling_params: Mapping[str, Any]) -> None:
    """Raises ConfigError on a feature of slime that these settings, or these rollouts, do not go with."""
    exact = config.loss_mask_mode == "strict" and config.token_tracking_mode == "manual" and config.track_log_probs
    if replays_top_p(sampling_params) and not exact:
        raise ConfigError(
            "--rollout-top-p below 1 needs LOSS_MASK_MODE=strict, TOKEN_TRACKING_MODE=manual and TRACK_LOG_PROBS=true: "
            "this slime replays what each token was drawn from. Use these, or --rollout-top-p 1."
        )
    ours = getattr(args, "custom_rm_path", None) == "generate_with_search.reward_func"
    keys = [key for key in ("reward_key", "eval_reward_key") if getattr(args, key, None)]
    if ours and keys:
        flags = " and ".join(f"--{key.replace('_', '-')}" for key in keys)
        raise ConfigError(
            f"{flags}: generate_with_search.reward_func returns a number, which has no key. Leave it out."
        )
    if not config.track_log_probs and _trains_on_rollout_log_probs(args):
        raise ConfigError(
            "TRACK_LOG_PROBS=false with one update a step: this slime then takes the log-probabilities from the "
            "rollouts, and its training fails without them. Set TRACK_LOG_PROBS=true, or GLOBAL_BATCH_SIZE "
            "(--global-batch-size) to at most half of a step's samples."
        )
    if getattr(args, "use_rollout_routing_replay", False):
        raise ConfigError("--use-rollout-routing-replay is not built yet: these rollouts do not record experts.")


def _trains_on_rollout_log_probs(args: Any) -> bool:
    """Whether slime computes no log-probabilities before the update: since v0.3.0, with one update a step."""
    step = getattr(args, "rollout_batch_size", 0) * getattr(args, "n_samples_per_prompt", 0)
    computes = ("kl_coef", "use_critic", "keep_old_actor", "use_opd", "debug_rollout_only")
    return (
        hasattr(args, "custom_advantage_function_path")  # came with v0.3.0
        and 0 < step <= (getattr(args, "global_batch_size", None) or 0)
        and not any(getattr(args, name, None) for name in computes)
        and getattr(args, "advantage_estimator", None) != "gspo"
    )


def _context_limit(args: Any, config: SearchConfig, evaluation: bool) -> int:
    slime_limit = getattr(args, "eval_max_context_len" if evaluation else "rollout_max_context_len", None)
    return min(config.max_context_length, slime_limit or config.max_context_length)
