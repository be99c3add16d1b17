"""Checks of a running engine (--engine URL): limits, tokenizer, stop strings, and one rollout by the plugin."""

import asyncio
import dataclasses
import logging.handlers
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation import plugin
from evaluation.audit_checks import Audit
from evaluation.audited import Audited, Reader
from evaluation.records import record_of
from preflight.data import read_prompts
from preflight.findings import Blocked, Finding, Mistake, doubtful, fine, one_line, skipped, wrong
from preflight.probe import TIMEOUT_S, call, get
from preflight.setup import Setup
from search_rollout.config import ConfigError
from search_rollout.engine.client import EngineClient, call_params
from search_rollout.engine.sglang_reply import EngineError, Reply
from search_rollout.protocols.chat_template import decode, encode
from search_rollout.samples.record import record_of as rollout_record

KEPT_BY_SGLANG = 6  # SGLang rejects prompts that leave fewer free tokens than this in its context
WRONG_ENGINE = "correct --engine, or start the engine"
ROLLOUT_TIMEOUT_S = 200.0
TEXT = "Naïve café: 東京 123,456 <search>"  # tokenizers split it differently
BEGINNING = "Once upon a time, there was a"  # every model continues this
STOPS = ("a", "e", "i", "o", " ")  # the first words of almost any reply contain one of them
STOP_TOKENS, OVERSHOOT = 64, 8  # tokens asked for, and allowed after a stop: speculative decoding adds a few at a time


def find_engine(setup: Setup) -> str:
    """The address of an engine that answers. Raises Mistake."""
    if not setup.engine:
        raise Blocked("only with --engine URL")
    answer = get(setup.engine, "/health", WRONG_ENGINE)
    if answer.status not in (200, 404):  # an engine may have no /health
        remedy = "wait until the engine is ready, or read its log"
        raise Mistake(f"{setup.engine}/health answers {answer.status}", remedy)
    return setup.engine


def address(setup: Setup) -> Finding:
    return fine(setup.once(find_engine))


def context_length(setup: Setup) -> Finding:
    body = get(setup.need(find_engine), "/v1/models", WRONG_ENGINE).body
    longest, needed = setup.config.max_context_length, setup.config.max_context_length + KEPT_BY_SGLANG
    try:
        length = int(body["data"][0]["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError):
        return skipped("the engine does not report its context length")
    if length < needed:
        return wrong(
            f"the engine takes {length} tokens, but trajectories of {longest} need {needed}: SGLang keeps some free",
            f"start the engine with --context-length {needed} or more, or lower max_context_length to "
            f"{length - KEPT_BY_SGLANG}",
        )
    return fine(f"{length} tokens; {needed} are needed")


def vocabulary(setup: Setup) -> Finding:
    ours = encode(setup.tokenizer, TEXT)
    body = {"text": TEXT, "sampling_params": {"max_new_tokens": 1, "temperature": 0}, "logprob_start_len": 0}
    try:
        theirs = [token for token, _ in _generate(setup, body).prompt_scores or []]
    except EngineError:
        theirs = []
    if not theirs:
        return skipped("the engine does not report how it splits text; rollouts send ids")
    # The first id of a prompt has no log-probability, and a beginning-of-text id may stand before ours.
    if theirs[1 - len(ours) :] != ours[1:]:
        problem = "the engine and the tokenizer of HF_CHECKPOINT split text into different ids"
        return wrong(problem, "start the engine on HF_CHECKPOINT, or on a checkpoint of the same model")
    return fine("the engine splits text as the tokenizer of HF_CHECKPOINT does")


def stop_strings(setup: Setup) -> Finding:
    tokenizer = setup.tokenizer
    params = call_params({"temperature": 0}, STOP_TOKENS, STOPS)
    try:
        reply = _generate(setup, {"input_ids": encode(tokenizer, BEGINNING), "sampling_params": params})
    except EngineError as error:
        raise Blocked(f"the engine gives no reply: {one_line(error, 100)}") from error
    count = len(reply.ids)
    texts = (decode(tokenizer, reply.ids[:end]) for end in range(1, count + 1))
    stopped = next((end for end, text in enumerate(texts, 1) if any(stop in text for stop in STOPS)), count)
    if count - stopped > OVERSHOOT:
        return wrong(
            f"the engine ignores `stop`: {count - stopped} tokens follow the first stop string",
            "use an engine that obeys sampling_params.stop; otherwise the model invents documents after </search>",
        )
    if reply.ended_turn or reply.finish == "length":
        return skipped("the reply ended in another way, before a stop string")
    return fine(f"the engine stops at a stop string (token {stopped} of the reply)")


def _generate(setup: Setup, body: Mapping[str, Any]) -> Reply:
    """One reply. Raises EngineError."""
    client = EngineClient(setup.need(find_engine), timeout_s=4 * TIMEOUT_S, retries=0)
    return call(client, lambda: client.generate({**body, "return_logprob": True}, {}, lambda: False))


def one_rollout(setup: Setup) -> Finding:
    setup.need(find_engine)
    row = setup.need(read_prompts).first[0]
    if setup.lacks_google_key:
        raise Blocked("GOOGLE_API_KEY is not set")
    tokenizer, warnings, began = setup.tokenizer, logging.handlers.BufferingHandler(10_000), time.monotonic()
    warnings.setLevel(logging.WARNING)
    logging.getLogger().addHandler(warnings)
    try:
        sample = asyncio.run(asyncio.wait_for(_roll_out(setup, tokenizer, row), ROLLOUT_TIMEOUT_S))
    except ConfigError as error:
        return wrong(one_line(error), "correct that setting; in router modes --engine is the token router's address")
    except TimeoutError:
        return wrong(f"no rollout within {ROLLOUT_TIMEOUT_S:.0f} s", "read the engine's log: does it generate at all?")
    finally:
        logging.getLogger().removeHandler(warnings)
    record = rollout_record(sample)
    assert record is not None  # written by generate_with_search
    if record.discarded:
        reason = ["no reason was logged", *map(_said, warnings.buffer)][-1]
        found = f"the sample was discarded ({record.stop.value}): {reason}"
        return wrong(found, "correct this: training ignores such samples")
    audit = Audit()
    audit.add(Audited(record_of(sample), "this rollout", Path(), Reader(tokenizer), "ids"))
    if problem := next((row.finding.found for row in audit.rows() if row.finding.mark == "✗"), ""):
        return wrong(problem, "this is a bug: please report it")
    counts = record.search_counts
    summary = (
        f"{record.stop.value}; turns: {record.model_turns}, searches: {counts['queries']}, "
        f"reward: {sample.reward:.2f}; {sum(sample.loss_mask)} of {sample.response_length} tokens are trained; "
        f"{time.monotonic() - began:.1f} s"
    )
    if counts["failed"]:
        reason = next(result.error for result in record.searches if result.error)
        return wrong(f"searches failed: {counts['failed']}, such as {reason} ({summary})", "see the group search")
    if not counts["queries"]:
        remedy = "this is usual for a small model before its training; otherwise look at the prompt"
        return doubtful(f"the model did not search: {summary}", remedy)
    return fine(summary)


def _said(warning: logging.LogRecord) -> str:
    error = f" {warning.exc_info[1]!r}" if warning.exc_info else ""
    return one_line(f"{warning.getMessage()}{error}")


async def _roll_out(setup: Setup, tokenizer: Any, row: dict[str, Any]) -> Any:
    """Rolls out one Sample with the plugin's hooks, called like in slime."""
    plugin.find_slime()
    args = plugin.plugin_args(
        model=setup["HF_CHECKPOINT"],
        engine_url=setup.need(find_engine),
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


CHECKS = (address, context_length, vocabulary, stop_strings, one_rollout)
