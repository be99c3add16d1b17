"""Spans in slime's timeline: engine calls, searches, and the wait for a search slot, beside slime's own.

`follow(sample)` at the start of a rollout; from then on `span` adds to that sample, also in the tasks that the rollout
starts. Where slime has no `trace_span` (before v0.2.4) nothing is recorded. A timeline never fails a rollout.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from search_rollout.slime_functions import slime_function

logger = logging.getLogger(__name__)

ENGINE_CALL = "sglang_generate"  # slime's name: it makes its engine series of the spans that are called so
SEARCH = "search"
SEARCH_SLOT = "search_slot"

_sample: ContextVar[Any] = ContextVar("sample", default=None)


def follow(sample: Any) -> None:
    """Spans of this task, and of the tasks that it starts from now on, belong to `sample`."""
    _sample.set(sample)


@contextmanager
def span(name: str) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A stretch of time of the followed sample. Yields what adds attributes to it; None if it is not recorded."""
    trace_span, sample = _slime_function("trace_span"), _sample.get()
    if trace_span is None or sample is None:
        yield None
        return
    with trace_span(sample, name, attrs=None) as slime_span:
        yield getattr(slime_span, "update", None)


def reply_attributes(meta_info: Mapping[str, Any]) -> Mapping[str, Any]:
    """What slime shows of an engine's reply."""
    try:
        return (_slime_function("build_sglang_meta_trace_attrs") or dict)(meta_info)
    except Exception as error:  # v0.2.4 expects a finish reason in every reply
        logger.debug("a reply is missing in the timeline: %r", error)
        return {}


@functools.cache
def _slime_function(name: str) -> Callable[..., Any] | None:
    try:
        return slime_function(f"trace_utils.{name}")
    except ImportError:
        return None
