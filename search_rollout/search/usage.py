"""Counts what searching has cost so far, as figures for a metrics log."""

import threading
from collections import Counter


class SearchUsage:
    """The counters of one process. Event loops in several threads may share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queries: Counter[str] = Counter()  # by where the answer came from
        self._calls = 0
        self._budgeted = 0
        self._usd = 0.0

    def count(self, origin: str, *, failed: bool) -> None:
        with self._lock:
            self._queries["failed" if failed else origin] += 1

    def count_call(self, usd: float) -> None:
        """Counts a call to a backend, which costs `usd` if it is answered."""
        with self._lock:
            self._calls += 1
            self._usd += usd

    def take_call(self, budget: int) -> int | None:
        """Takes one call from the budget. Returns the calls used so far, or None if the budget is spent."""
        with self._lock:
            if self._budgeted >= budget:
                return None
            self._budgeted += 1
            return self._budgeted

    def snapshot(self) -> dict[str, float]:
        """The figures by name. The cost is an upper bound: it includes retries and failed calls."""
        with self._lock:
            queries = sum(self._queries.values())
            cached, shared = self._queries["cache"], self._queries["shared"]
            return {
                "search/queries": queries,
                "search/failed": self._queries["failed"],
                "search/cached": cached,
                "search/shared": shared,
                "search/hit_rate": (cached + shared) / queries if queries else 0.0,
                "search/calls": self._calls,
                "search/usd": self._usd,
            }
