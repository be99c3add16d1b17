"""The list of SGLang workers, their load, and the choice of one for each request."""

import uuid
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from yarl import URL

MAX_STICKY_KEYS = 100_000


@dataclass(eq=False)
class Worker:
    url: str
    worker_type: str = "regular"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_healthy: bool = True  # False: known to be dead
    load: int = 0  # requests in flight
    chosen: int = 0  # how often it was chosen

    def as_json(self) -> dict[str, str | bool | int]:
        """The worker in the format that slime reads."""
        return {name: getattr(self, name) for name in ("id", "url", "worker_type", "is_healthy", "load")}


class Workers:
    """All workers, in the order in which they registered."""

    def __init__(self) -> None:
        self._by_url: dict[str, Worker] = {}
        self._sticky: OrderedDict[str, Worker] = OrderedDict()

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._by_url.values()))

    def __len__(self) -> int:
        return len(self._by_url)

    def add(self, url: str, worker_type: str = "regular") -> Worker:
        """Adds a worker, assumed healthy, or returns the one with this URL. Raises ValueError if it is not a URL."""
        worker = self._by_url.setdefault(worker_url(url), Worker(worker_url(url)))
        worker.worker_type, worker.is_healthy = worker_type, True
        return worker

    def remove(self, id_or_url: str) -> bool:
        """Removes a worker; its requests in flight continue. Returns False if there is no such worker."""
        for worker in self:
            if id_or_url in (worker.id, worker.url) or id_or_url.rstrip("/") == worker.url:
                del self._by_url[worker.url]
                return True
        return False

    def choose(self, key: str, tried: Container[Worker]) -> Worker | None:
        """The last worker used for this key, else the one with the fewest requests in flight; None if all were tried.

        Workers known to be dead come last: a try costs little, and they may have recovered.
        """
        untried = [worker for worker in self if worker not in tried]
        ready = [worker for worker in untried if worker.is_healthy] or untried
        if not ready:
            return None
        worker = self._sticky.get(key)
        if worker not in ready:
            worker = min(ready, key=lambda one: (one.load, one.chosen))
        worker.chosen += 1
        if key:
            self._sticky[key] = worker
            self._sticky.move_to_end(key)
            if len(self._sticky) > MAX_STICKY_KEYS:
                self._sticky.popitem(last=False)
        return worker


def worker_url(text: str) -> str:
    """The URL without a slash at its end. Raises ValueError, in one sentence, if it is not one."""
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and url.host and not url.query_string and not url.fragment
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is not the URL of a worker, such as http://10.0.0.1:30000.")
    return text.rstrip("/")
