"""What all rollouts of one event loop share: settings, tokenizer, and the clients of engine and search."""

from collections.abc import Sequence
from typing import Any

from search_rollout import sample_fields
from search_rollout.config import ConfigError, SearchConfig
from search_rollout.environment import Environment
from search_rollout.policy import GeneratePolicy
from search_rollout.retrieval import LocalRetriever
from search_rollout.trajectory import Trajectory


class Runtime:
    """Made once per event loop, inside it. `state` is slime's GenerateState (`.tokenizer`, `.aborted`)."""

    def __init__(self, args: Any, config: SearchConfig, state: Any) -> None:
        _check_slime_args(args)
        self.args = args
        self.config = config
        self.tokenizer = state.tokenizer
        self._state = state
        self.policy = GeneratePolicy(
            f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate",
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

    def begin(self, sample: Any, evaluation: bool) -> Trajectory:
        """A trajectory that holds the sample's prompt and nothing else."""
        prompt = sample_fields.prompt_text(sample, self.tokenizer)
        return Trajectory(
            self._context_limit(evaluation),
            self.config.track_log_probs,
            prompt_ids=self.tokenizer.encode(prompt, add_special_tokens=False),
            think_opened=prompt.rstrip().endswith("<think>"),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, special tokens and spaces as they are."""
        return self.tokenizer.decode(
            list(ids),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )

    def routing_headers(self, sample: Any) -> dict[str, str]:
        """Keeps a conversation on one engine, where slime routes by session."""
        session = getattr(sample, "session_id", None)
        if session and getattr(self.args, "router_policy", None) == "consistent_hashing":
            return {"X-SMG-Routing-Key": session}
        return {}

    def _context_limit(self, evaluation: bool) -> int:
        name = "eval_max_context_len" if evaluation else "rollout_max_context_len"
        return min(self.config.max_context_length, getattr(self.args, name, None) or self.config.max_context_length)

    async def close(self) -> None:
        """Releases all connections."""
        await self.policy.close()
        await self.environment.close()


def _check_slime_args(args: Any) -> None:
    if getattr(args, "rollout_top_p", 1.0) != 1.0:
        raise ConfigError(
            f"--rollout-top-p {args.rollout_top_p} is not built yet: newer slime then replays each token's nucleus, "
            "which these rollouts do not record. Use --rollout-top-p 1."
        )
