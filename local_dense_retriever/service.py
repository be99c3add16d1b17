"""The retriever behind the routes: loads first, then searches in batches."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from local_dense_retriever.batcher import Batcher, Limits
from local_dense_retriever.loading import Report
from local_dense_retriever.metrics import Metrics
from local_dense_retriever.retriever import Retriever


class Service:
    """Owns the only thread that loads the retriever and searches with it: FAISS on a GPU is not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.metrics = Metrics()
        self.about: dict[str, str | int] = {}  # Retriever.describe(), once it is loaded
        self._limits = limits
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="retriever")
        self.batcher: Batcher | None = None  # None until everything is loaded
        self._loading, self._began = "", time.monotonic()
        self._uploads: set[asyncio.Timeout] = set()
        self.stopping = False

    async def load(self, load: Callable[[Report], Retriever]) -> None:
        """Loads the retriever, and searches with it from then on; raises what `load` raises."""

        def report(what: str) -> None:  # called in the owner's thread
            self._loading, self._began = what, time.monotonic()
            print(f"loading {what}", flush=True)

        retriever = await asyncio.get_running_loop().run_in_executor(self._owner, load, report)
        self.about = retriever.describe()
        self.metrics.describe_index(self.about)
        self.batcher = Batcher(retriever.search, self._owner, self._limits, self.metrics)

    @property
    def loading(self) -> str | None:
        """What is being loaded, and since how many seconds; None once everything is."""
        if self.batcher is not None:
            return None
        return f"{self._loading or 'nothing yet'}, for {time.monotonic() - self._began:.0f} s"

    @asynccontextmanager
    async def upload(self, timeout_s: float) -> AsyncIterator[None]:
        """Wraps the wait for a request's body. Raises TimeoutError if it takes too long or the server stops."""
        async with asyncio.timeout(0 if self.stopping else timeout_s) as limit:
            self._uploads.add(limit)
            try:
                yield
            finally:
                self._uploads.discard(limit)

    def stop_uploads(self) -> None:
        """Stops waiting for bodies, which their clients may never send."""
        self.stopping = True
        for limit in self._uploads:
            limit.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Stops batching; the thread finishes its current work."""
        if self.batcher is not None:
            self.batcher.close()
        self._owner.shutdown(wait=False, cancel_futures=True)
