"""Blocks calls to a service while it is down, so that they fail fast."""

import math
import time

FAILURES = 5  # in a row
FAILING_S = 1.0  # and for at least this long: one hiccup that hits a burst must not block all other calls
OPEN_S = 1.0  # between two probes


class CircuitBreaker:
    """Closed: every call is allowed. Open: one probe call is allowed every `open_s` seconds; a success closes it.

    A cancelled probe is harmless: another is sent after `open_s` seconds.
    """

    def __init__(self, *, failures: int = FAILURES, failing_s: float = FAILING_S, open_s: float = OPEN_S) -> None:
        self._failures = failures
        self._failing_s = failing_s
        self._open_s = open_s
        self._in_a_row = 0
        self.failing_since = math.inf  # when the first failure in a row began, by time.monotonic()
        self._next_probe: float | None = None  # None: closed

    @property
    def is_open(self) -> bool:
        return self._next_probe is not None

    def allows(self) -> bool:
        """Whether a call is allowed now. If the breaker is open, True allows only this call, as a probe."""
        if self._next_probe is None:
            return True
        if time.monotonic() < self._next_probe:
            return False
        self._next_probe = time.monotonic() + self._open_s
        return True

    def succeeded(self) -> None:
        self._in_a_row, self.failing_since, self._next_probe = 0, math.inf, None

    def failed(self, began: float) -> None:
        """Records a failed call that began at `began`, by time.monotonic()."""
        self._in_a_row += 1
        self.failing_since = min(self.failing_since, began)
        if self._in_a_row >= self._failures and time.monotonic() - self.failing_since >= self._failing_s:
            self.open(self._open_s)

    def open(self, seconds: float) -> None:
        """Allows no call for this long."""
        self._next_probe = max(self._next_probe or 0.0, time.monotonic() + seconds)
