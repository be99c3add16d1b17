"""Translates a chat request's sampling fields to SGLang's names."""

from collections.abc import Mapping
from typing import Any

from token_router.errors import bad_request

RENAMED = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
}
UNCHANGED = (
    *("temperature", "top_p", "stop", "frequency_penalty", "presence_penalty"),
    # SGLang's own, beyond OpenAI's
    *("top_k", "min_p", "stop_token_ids", "repetition_penalty", "skip_special_tokens", "no_stop_trim"),
    *("spaces_between_special_tokens", "ignore_eos", "custom_params", "regex", "json_schema", "ebnf"),
)
# Fields that the router cannot pass on although they change the reply, each with the value that changes nothing.
REFUSED = {"n": 1, "top_logprobs": 0, "tool_choice": "auto", "response_format": {"type": "text"}}


def worker_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of a worker's `/generate` request. Raises ApiError for a field that cannot be translated.

    If the caller sets no token limit, neither does the router: the default of SGLang's `/generate`, 128 tokens, would
    surprise a caller of chat completions.
    """
    for field, harmless in REFUSED.items():
        if body.get(field) is not None and body[field] != harmless:
            raise bad_request(f"`{field}` is {body[field]!r}; the router supports only {harmless!r}.", "unsupported")
    params: dict[str, Any] = {"max_new_tokens": None}
    for name in (*RENAMED, *UNCHANGED):
        if body.get(name) is not None:
            params[RENAMED.get(name, name)] = body[name]
    fields: dict[str, Any] = {"sampling_params": params}
    if body.get("logprobs"):
        fields["return_logprob"] = True
    if "logprob_start_len" in body:
        fields["logprob_start_len"] = body["logprob_start_len"]
    return fields
