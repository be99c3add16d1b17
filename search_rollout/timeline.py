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


class Span:
    """What is known about a span only at its end."""

    def __init__(self, slime_span: Any = None) -> None:
        self._slime_span = slime_span

    def note(self, **attributes: Any) -> None:
        """Adds attributes."""
        if self._slime_span is not None:
            self._slime_span.update(attributes)

    def note_reply(self, meta_info: Mapping[str, Any]) -> None:
        """Adds what slime shows of an engine's reply."""
        if self._slime_span is None:
            return
        try:
            attributes_of = _slime_function("build_sglang_meta_trace_attrs") or dict
            self._slime_span.update(attributes_of(meta_info))
        except Exception as error:  # v0.2.4 expects a finish reason in every reply
            logger.debug("a reply is missing in the timeline: %r", error)


def follow(sample: Any) -> None:
    """Spans of this task, and of the tasks that it starts from now on, belong to `sample`."""
    _sample.set(sample)


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[Span]:
    """A stretch of time of the followed sample."""
    trace_span, sample = _slime_function("trace_span"), _sample.get()
    if trace_span is None or sample is None:
        yield Span()
        return
    with trace_span(sample, name, attrs=attributes or None) as slime_span:
        yield Span(slime_span if hasattr(slime_span, "update") else None)


@functools.cache
def _slime_function(name: str) -> Callable[..., Any] | None:
    try:
        return slime_function(f"trace_utils.{name}")
    except ImportError:
        return None
