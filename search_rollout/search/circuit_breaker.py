"""Leaves a service alone while it is down, so that asking it costs nothing."""

import math
import time

FAILURES = 5  # in a row
FAILING_S = 1.0  # and for so long: a burst that meets one hiccup must not close the way for all the others
OPEN_S = 1.0  # between two probes


class CircuitBreaker:
    """Closed: every call may go. Open: one call each `open_s` seconds may, as a probe; a success closes it.

    A probe that never reports back, because it was cancelled, needs no care: the next one follows.
    """

    def __init__(self, *, failures: int = FAILURES, failing_s: float = FAILING_S, open_s: float = OPEN_S) -> None:
        self._failures = failures
        self._failing_s = failing_s
        self._open_s = open_s
        self._in_a_row = 0
        self._failing_since = math.inf
        self._next_probe: float | None = None  # None: closed

    @property
    def is_open(self) -> bool:
        """True while only probes may go."""
        return self._next_probe is not None

    def allows(self) -> bool:
        """Whether a call may go now; a true answer is used up by it."""
        if self._next_probe is None:
            return True
        if time.monotonic() < self._next_probe:
            return False
        self._next_probe = time.monotonic() + self._open_s
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._in_a_row, self._failing_since, self._next_probe = 0, math.inf, None

    def failed(self, began: float) -> None:
        """A call that began at `began`, by time.monotonic(), got no answer."""
        self._in_a_row += 1
        self._failing_since = min(self._failing_since, began)
        if self._in_a_row >= self._failures and time.monotonic() - self._failing_since >= self._failing_s:
            self.open(self._open_s)

    def open(self, seconds: float) -> None:
        """Lets no call go for so long."""
        self._next_probe = max(self._next_probe or 0.0, time.monotonic() + seconds)
