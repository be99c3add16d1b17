"""Top-p replay: slime's --rollout-top-p below 1, from v0.3.1 on.

The trainer must know which tokens each token was drawn from. SGLang reports them with a reply if slime's
`custom_params` ask for it; slime's own `Sample.append_response_tokens` reads and aligns them.
"""

from collections.abc import Mapping
from typing import Any

from search_rollout.engine.sglang_reply import EngineError
from search_rollout.trajectory import Trajectory

# The fields that slime reads; the rest of a reply is not passed on.
_KEYS = ("top_p_token_ids", "top_p_kept_token_ids", "top_p_token_offsets", "top_p_kept_token_offsets")


def replays_top_p(sampling_params: Mapping[str, Any]) -> bool:
    """True if slime asks the engine for the tokens that each token was drawn from."""
    return bool((sampling_params.get("custom_params") or {}).get("return_top_p_token_ids"))


def write_top_p_replay(args: Any, sample: Any, trajectory: Trajectory) -> None:
    """Writes prompt and response with slime's own method, which sets the replay fields.

    Raises EngineError if the engine's data is missing or does not match its replies.
    """
    sample.tokens, sample.loss_mask, sample.rollout_log_probs = list(trajectory.prompt_ids), None, None
    metas, place = iter(trajectory.meta_infos), 0
    for segment in trajectory.segments:
        ids = trajectory.response_ids[place : place + segment.tokens]
        log_probs = (trajectory.log_probs or [])[place : place + segment.tokens]
        place += segment.tokens
        if segment.kind != "turn":
            sample.append_response_tokens(args, tokens=ids, trainable=False, update_terminal_info=False)
            continue
        data = {key: value for key, value in next(metas).items() if key in _KEYS}
        if not data:
            raise EngineError(
                "--rollout-top-p below 1: the engine's reply does not say which tokens it drew from. This needs the "
                "SGLang of slime's own image; or use --rollout-top-p 1."
            )
        try:
            sample.append_response_tokens(
                args, tokens=ids, log_probs=log_probs, meta_info=data, update_terminal_info=False
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise EngineError(
                f"--rollout-top-p below 1: the engine's data does not match its reply: {error}"
            ) from error
