"""What all rollouts of one event loop share: settings, tokenizer, and the clients of engine and search."""

from collections.abc import Sequence
from typing import Any

from search_rollout import sample_fields
from search_rollout.chat_template import decode
from search_rollout.config import ConfigError, SearchConfig
from search_rollout.environment import Environment
from search_rollout.policy import GeneratePolicy
from search_rollout.retrieval import LocalRetriever
from search_rollout.trajectory import Trajectory


class Runtime:
    """Made once per event loop, inside it. `state` is slime's GenerateState (`.tokenizer`, `.aborted`)."""

    def __init__(self, engine_url: str, config: SearchConfig, state: Any) -> None:
        self.config = config
        self.tokenizer = state.tokenizer
        self._state = state
        self.policy = GeneratePolicy(
            engine_url,
            timeout_s=config.engine_timeout_s,
            retries=config.engine_retries,
            track_log_probs=config.track_log_probs,
        )
        search = LocalRetriever(
            config.retrieval_server_url,
            topk=config.topk,
            concurrency=config.search_concurrency,
            timeout_s=config.search_timeout_s,
            retries=config.search_retries,
        )
        self.environment = Environment(self.tokenizer, search, config.max_obs_tokens)

    def aborted(self) -> bool:
        """True once slime has called the whole rollout off."""
        return bool(self._state.aborted)

    def begin(self, args: Any, sample: Any, evaluation: bool) -> Trajectory:
        """A trajectory that holds the sample's prompt and nothing else."""
        prompt = sample_fields.prompt_text(sample, self.tokenizer)
        prompt_ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        trajectory = Trajectory(_context_limit(args, self.config, evaluation), self.config.track_log_probs, prompt_ids)
        trajectory.think_opened = self.thinking(trajectory)
        return trajectory

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens and spaces as they are."""
        return decode(self.tokenizer, ids)

    def thinking(self, trajectory: Trajectory) -> bool:
        """True if the text so far ends in <think>, as some templates begin every turn of the model."""
        return self.decode(trajectory.ids[-16:]).rstrip().endswith("<think>")

    async def close(self) -> None:
        """Releases all connections."""
        await self.policy.close()
        await self.environment.close()


def engine_url(args: Any) -> str:
    """slime's router."""
    return f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"


def routing_headers(args: Any, sample: Any) -> dict[str, str]:
    """Keeps a conversation on one engine, where slime routes by session."""
    session = getattr(sample, "session_id", None)
    if session and getattr(args, "router_policy", None) == "consistent_hashing":
        return {"X-SMG-Routing-Key": session}
    return {}


def check_slime_args(args: Any, sample: Any) -> None:
    """Raises ConfigError on a feature of slime that needs data from each reply which rollouts do not record yet."""
    if getattr(args, "rollout_top_p", 1.0) != 1.0 and hasattr(sample, "rollout_top_p_token_ids"):
        raise ConfigError(
            f"--rollout-top-p {args.rollout_top_p} is not built yet: this slime replays each token's nucleus, which "
            "these rollouts do not record. Use --rollout-top-p 1."
        )
    if getattr(args, "use_rollout_routing_replay", False):
        raise ConfigError("--use-rollout-routing-replay is not built yet: these rollouts do not record experts.")


def _context_limit(args: Any, config: SearchConfig, evaluation: bool) -> int:
    slimes = getattr(args, "eval_max_context_len" if evaluation else "rollout_max_context_len", None)
    return min(config.max_context_length, slimes or config.max_context_length)
