"""Checks of a running engine (--engine URL): its limits, its tokenizer, and one real rollout by the plugin itself."""

import asyncio
import dataclasses
import logging
import time
from typing import Any

from preflight.data import read_prompts
from preflight.findings import Blocked, Check, Finding, Mistake, doubtful, fine, one_line, skipped, wrong
from preflight.probe import TIMEOUT_S, get
from preflight.setup import Setup
from search_rollout.config import ConfigError
from search_rollout.http_client import JsonClient, RequestFailed
from search_rollout.protocols.chat_template import encode
from search_rollout.samples.record import record_of

KEPT_BY_SGLANG = 6  # tokens below its context length at which it refuses prompts
ROLLOUT_TIMEOUT_S = 200.0
TEXT = "Naïve café: 東京 123,456 <search>"  # which tokenizers split differently


def address(setup: Setup) -> Finding:
    answer = get(f"{_url(setup)}/health")
    if answer.trouble:
        return wrong(f"{_url(setup)}: {answer.trouble}", "correct --engine, or start the engine")
    if answer.status not in (200, 404):  # who has no /health may still be an engine
        return wrong(f"{_url(setup)}/health answers {answer.status}", "wait until the engine is ready, or read its log")
    return fine(_url(setup))


def context(setup: Setup) -> Finding:
    _require_answer(setup)
    body, needed = get(f"{_url(setup)}/v1/models").body, setup.config.max_context_length + KEPT_BY_SGLANG
    try:
        length = int(body["data"][0]["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError):
        return skipped("the engine does not say its context length")
    if length < needed:
        return wrong(
            f"the engine takes {length} tokens, and trajectories of {setup.config.max_context_length} need {needed}: "
            "SGLang refuses prompts that come nearer",
            f"give the engine --context-length {needed} or more, or lower max_context_length to "
            f"{length - KEPT_BY_SGLANG}",
        )
    return fine(f"{length} tokens, of which {needed} are needed")


def vocabulary(setup: Setup) -> Finding:
    _require_answer(setup)
    ours = encode(setup.tokenizer, TEXT)
    body = {
        "text": TEXT,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }

    async def ask() -> Any:
        client = JsonClient(_url(setup), timeout_s=2 * TIMEOUT_S, retries=0, pause_s=0.0)
        try:
            return await client.post("/generate", body)
        finally:
            await client.close()

    try:
        theirs = [item[1] for item in asyncio.run(ask())["meta_info"]["input_token_logprobs"]]
    except (RequestFailed, KeyError, IndexError, TypeError):
        return skipped("the engine does not tell how it splits a text; the rollout sends ids")
    if theirs[-len(ours) :] != ours:  # it may put a beginning-of-text before them
        return wrong(
            "the engine splits a text into other ids than the tokenizer of HF_CHECKPOINT",
            "start the engine on HF_CHECKPOINT, or on a checkpoint of the same model",
        )
    return fine("the engine splits a text as the tokenizer of HF_CHECKPOINT does")


def rollout(setup: Setup) -> Finding:
    _require_answer(setup)
    try:
        row = setup.once(read_prompts).first[0]
    except (Mistake, ModuleNotFoundError) as mistake:
        raise Blocked("PROMPT_DATA cannot be used") from mistake
    if setup.lacks_google_key:
        raise Blocked("GOOGLE_API_KEY is not set")
    tokenizer, said, began = setup.tokenizer, _Warnings(), time.monotonic()
    logging.getLogger().addHandler(said)
    try:
        sample = asyncio.run(asyncio.wait_for(_roll_out(setup, tokenizer, row), ROLLOUT_TIMEOUT_S))
    except ConfigError as error:
        return wrong(one_line(error), "correct that setting; in router modes --engine is the token router's address")
    except TimeoutError:
        return wrong(f"no rollout within {ROLLOUT_TIMEOUT_S:.0f} s", "read the engine's log: does it generate at all?")
    finally:
        logging.getLogger().removeHandler(said)
    record = record_of(sample)
    assert record is not None  # ours
    if record.discarded:
        found = f"the rollout was discarded ({record.stop.value}): {said.last}"
        return wrong(found, "mend that: in training such samples are not trained")
    if problem := _misaligned(setup, sample):
        return wrong(problem, "this is not expected: please report it")
    counts = record.search_counts
    summary = (
        f"{record.stop.value}; turns: {record.model_turns}, searches: {counts['queries']}, "
        f"reward: {sample.reward:.2f}; {sum(sample.loss_mask)} of {sample.response_length} tokens are trained; "
        f"{time.monotonic() - began:.1f} s"
    )
    if counts["failed"]:
        reason = next(result.error for result in record.searches if result.error)
        return wrong(f"searches failed: {counts['failed']}, such as {reason} ({summary})", "see the rows of search")
    if not counts["queries"]:
        return doubtful(
            f"the model did not search: {summary}",
            "usual for a small model before its training; else look at the prompt",
        )
    return fine(summary)


async def _roll_out(setup: Setup, tokenizer: Any, row: dict[str, Any]) -> Any:
    """One Sample by the hooks of the plugin, as slime calls them."""
    from evaluation import plugin

    plugin.find_slime()
    args = plugin.plugin_args(
        model=setup["HF_CHECKPOINT"],
        engine_url=_url(setup),
        settings={**setup.yaml, **dataclasses.asdict(setup.config), "engine_retries": 0},
        temperature=float(setup["ROLLOUT_TEMPERATURE"]),
        max_response_len=setup.number("ROLLOUT_MAX_RESPONSE_LEN"),
        template_kwargs=setup.template_kwargs,
    )
    import generate_with_search

    try:
        return await plugin.ask(args, plugin.sample_of_row(args, tokenizer, row), plugin.sampling_params(args))
    finally:
        await generate_with_search.close()


def _misaligned(setup: Setup, sample: Any) -> str:
    """What does not hold of a Sample, though it must; empty if all does."""
    size, log_probs = sample.response_length, sample.rollout_log_probs
    if len(sample.loss_mask) != size or len(sample.tokens) <= size:
        return f"{len(sample.tokens)} tokens, {len(sample.loss_mask)} of the loss mask, response of {size}: not aligned"
    if log_probs is not None and len(log_probs) != size:
        return f"{len(log_probs)} log-probabilities for a response of {size} tokens"
    if not any(sample.loss_mask):
        return "no token of the response would be trained"
    if max(sample.tokens) >= len(setup.tokenizer):
        return f"the engine sampled id {max(sample.tokens)}, and the tokenizer has {len(setup.tokenizer)}"
    return ""


class _Warnings(logging.Handler):
    """Keeps what the plugin warned of last: the reason why a sample was given up."""

    last = "no reason was logged"

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.last = one_line(f"{record.getMessage()} {error!r}" if error else record.getMessage())


def _url(setup: Setup) -> str:
    if not setup.engine:
        raise Blocked("only with --engine URL")
    return setup.engine


def _require_answer(setup: Setup) -> None:
    if setup.once(address).mark == "✗":
        raise Blocked("the engine does not answer")


CHECKS = (
    Check("address", lambda setup: setup.once(address)),
    Check("context length", context),
    Check("vocabulary", vocabulary),
    Check("one rollout", rollout),
)
