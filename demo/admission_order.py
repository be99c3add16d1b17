"""Records the order in which the engine admits requests, and follows it when a step is repeated.

The requests that share a forward pass depend on arrival times, and floating-point results depend on the shape of the
pass. Everything else in the engine is determined by the requests, so repeating the order repeats every bit.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0  # to wait for the next request of the order while others are waiting


class AdmissionOrder:
    """The order of requests, each with a `key`. `recorded` is JSON: `[pass, key, …]` per pass that admissions preceded.

    `followed` is an earlier `recorded`. Requests that it does not name are not admitted unless it is abandoned.
    """

    def __init__(self, followed: Sequence[Sequence[int | str]] | None = None) -> None:
        self.recorded: list[list[int | str]] = []
        self.follows = followed is not None
        self._due = {int(number): list(map(str, keys)) for number, *keys in followed or ()}
        self._pass = 0

    def due(self, waiting: Iterable[Any]) -> list[Any] | None:
        """The requests of `waiting` to admit now, in order; None while a request that is due has not arrived."""
        arrived, found = list(waiting), []
        if not self.follows:
            return arrived
        for key in self._due.get(self._pass, ()):
            request = next((request for request in arrived if request.key == key), None)
            if request is None:
                return None
            arrived.remove(request)
            found.append(request)
        return found

    def note(self, admitted: Sequence[Any]) -> None:
        """Records the requests admitted before the pass that starts now."""
        if admitted:
            self.recorded.append([self._pass, *(request.key for request in admitted)])
        self._pass += 1

    def abandon(self) -> None:
        """Stops following the order, because the requests no longer match it."""
        logger.warning("the requests differ from the recorded ones; their order is free from pass %d on", self._pass)
        self.follows = False
