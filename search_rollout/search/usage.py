"""What searching has cost so far, in figures that a metrics log can read."""

import threading
from collections import Counter


class SearchUsage:
    """Counters of one process; its event loops, which may run in several threads, share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queries: Counter[str] = Counter()  # by where the answer came from
        self._calls = 0
        self._budgeted = 0
        self._usd = 0.0

    def count(self, origin: str, *, failed: bool) -> None:
        """One query has its result."""
        with self._lock:
            self._queries["failed" if failed else origin] += 1

    def count_call(self, usd: float) -> None:
        """One call goes to a backend; `usd` is what it costs if it is answered."""
        with self._lock:
            self._calls += 1
            self._usd += usd

    def take_call(self, budget: int) -> int | None:
        """How many calls of the budget are used, this one included; None if there are none left."""
        with self._lock:
            if self._budgeted >= budget:
                return None
            self._budgeted += 1
            return self._budgeted

    def snapshot(self) -> dict[str, float]:
        """The figures by name. The cost is an upper estimate: repeats and failed calls count as well."""
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
