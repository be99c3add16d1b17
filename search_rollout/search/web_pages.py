"""Fetches a web page and finds the passage around a search result's snippet; a separate process parses the page."""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

from search_rollout.config import ConfigError
from search_rollout.search.page_fetcher import Address, Page, PageFailed, PageFetcher, PageLimits, is_public

logger = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parents[2])
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")  # never passed to the process that parses untrusted pages

READERS = 2  # maximum processes: parsing is CPU work, run at low priority
TOLD_AFTER = 20  # if this many pages fail and none succeeds, warn that full pages do not work here


class WebPages:
    """Full pages for search results; belongs to one event loop.

    Raises ConfigError if required packages are missing. `is_allowed` decides which addresses may be contacted.
    """

    def __init__(self, limits: PageLimits | None = None, *, is_allowed: Callable[[Address], bool] = is_public) -> None:
        missing = [name for name in ("trafilatura", "chardet") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(f"Full pages need {' and '.join(missing)}: pip install {' '.join(missing)}.")
        self._limits = limits or PageLimits()
        self._fetcher = PageFetcher(self._limits, is_allowed)
        self._readers = PageReaders(READERS)
        self._read = self._failed = 0

    async def passage(self, url: str, hint: str) -> str | None:
        """The passage nearest to `hint` in the page at `url`; None if there is none or the page cannot be read."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                passage = await self._readers.read(await self._fetcher.fetch(url), hint)
        except TimeoutError:
            self._note(f"{url[:200]}: not read within {self._limits.seconds:g} s")
        except PageFailed as failure:
            self._note(str(failure))
        else:
            self._read += 1
            return passage
        return None

    async def close(self) -> None:
        await self._fetcher.close()
        await self._readers.close()

    def _note(self, reason: str) -> None:
        self._failed += 1
        logger.debug("page not read: %s", reason)
        if self._failed == TOLD_AFTER and not self._read:
            logger.warning(
                "full pages: none of the first %d could be read; using snippets instead. Last failure: %s",
                TOLD_AFTER,
                reason,
            )


class PageReaders:
    """At most `processes` workers (`search_rollout.search.page_reader`), started when needed, killed when they fail."""

    def __init__(self, processes: int) -> None:
        self._places = asyncio.Semaphore(processes)
        self._idle: list[Process] = []

    async def read(self, page: Page, hint: str) -> str | None:
        """See `page_reader.read_page`. Raises PageFailed if the page breaks the worker."""
        async with self._places:
            worker = self._idle.pop() if self._idle else await _start()
            try:
                answer = await _ask(worker, page, hint)
            except BaseException:  # also a cancellation, such as a timeout: the worker is in mid-page
                await _end(worker)
                raise
            self._idle.append(worker)
        if "error" in answer:
            raise PageFailed(f"the page cannot be read: {answer['error']}")
        return answer["passage"]

    async def close(self) -> None:
        while self._idle:
            await _end(self._idle.pop())


async def _start() -> Process:
    path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "search_rollout.search.page_reader"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**{name: value for name, value in os.environ.items() if not _SECRET.search(name)}, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the parent, which ends it
    )


async def _ask(worker: Process, page: Page, hint: str) -> dict:
    assert worker.stdin is not None and worker.stdout is not None
    request = {"bytes": len(page.body), "charset": page.charset, "hint": hint}
    try:
        worker.stdin.write(json.dumps(request).encode() + b"\n" + page.body)
        await worker.stdin.drain()
        return json.loads(await worker.stdout.readline())
    except (ConnectionError, ValueError) as error:
        raise PageFailed("the page ended the process that read it") from error


async def _end(worker: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.kill()
    await worker.wait()
    assert worker.stdin is not None
    worker.stdin.close()
