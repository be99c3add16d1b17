"""Which requests the engine admitted before which pass: recorded, and followed when a step is repeated.

Which requests share a forward pass depends on when they arrive, and floating-point results depend on the shape of the
pass. All else that the engine does follows from the requests, so a repeated order repeats every bit.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0  # for a request that the order says comes next, while others wait


class Admissible(Protocol):
    """What tells requests apart."""

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Admissible)


class AdmissionOrder:
    """`recorded` is JSON: `[pass, key, key, …]` for each pass before which requests were admitted.

    `followed`: such a list. Requests that it does not name are never admitted, until it is abandoned.
    """

    def __init__(self, followed: Sequence[Sequence[int | str]] | None = None) -> None:
        self.recorded: list[list[int | str]] = []
        self.follows = followed is not None
        self._due = {int(number): list(map(str, keys)) for number, *keys in followed or ()}
        self._pass = 0

    def due(self, waiting: Iterable[R]) -> list[R] | None:
        """Those of `waiting` that may be admitted now, in order; None while one that is due has not come yet."""
        if not self.follows:
            return list(waiting)
        arrived = list(waiting)
        found = []
        for key in self._due.get(self._pass, ()):
            request = next((request for request in arrived if request.key == key), None)
            if request is None:
                return None
            arrived.remove(request)
            found.append(request)
        return found

    def note(self, admitted: Sequence[R]) -> None:
        """A pass begins, with these requests as its new ones."""
        if admitted:
            self.recorded.append([self._pass, *(request.key for request in admitted)])
        self._pass += 1

    def abandon(self) -> None:
        """Admits what comes from now on: the requests are no longer those of the order."""
        logger.warning("the requests are not those that were recorded; from pass %d on their order is free", self._pass)
        self.follows = False


def request_key(input_ids: Sequence[int], seed: int) -> str:
    """Tells the requests of a step apart. Two that are equal in both may stand for each other."""
    return hashlib.sha256(f"{seed} {list(input_ids)}".encode()).hexdigest()[:16]
