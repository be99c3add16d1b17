"""Client of a service that speaks JSON, and the one rule of what is tried again and when.

RequestFailed           there is no usable answer
├── TransientFailure    another try may succeed: connection error, timeout, 429, 5xx
└── ServiceRefused      no try will succeed until the user acts: a wrong key, an exhausted quota
"""

import asyncio
import email.utils
import json
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import aiohttp

logger = logging.getLogger(__name__)

POLL_S = 0.1  # how often a pause checks for cancellation
_JSON = {"Content-Type": "application/json"}
T = TypeVar("T")


class RequestFailed(Exception):
    """There is no usable answer; the message names the URL and what happened."""

    status: int | None = None  # of the answer; None if the service did not answer
    retry_after_s: float = 0.0  # how long the service asks us to wait


class TransientFailure(RequestFailed):
    """Another try may succeed."""


class ServiceRefused(RequestFailed):
    """The service will refuse every call until the user acts; the message says what to do."""


def never() -> bool:
    """For requests that nothing calls off."""
    return False


class Retry:
    """Repeats an attempt after a TransientFailure, at most `retries` times."""

    def __init__(self, retries: int, pause_s: float) -> None:
        self._retries = retries
        self._pause_s = pause_s

    def pauses(self) -> Iterator[float]:
        """Seconds before each repeat: random up to a bound, which doubles from `pause_s` to 16 times that."""
        for number in range(self._retries):
            yield random.uniform(0.0, self._pause_s * min(2**number, 16))

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        deadline: float = math.inf,
        called_off: Callable[[], bool] = never,
    ) -> T:
        """Returns what the first successful attempt returns; raises the failure of the last one.

        Retry-After is waited for in addition to the pause. No attempt starts after `deadline`, by time.monotonic(), or
        once `called_off()` returns True, which also ends a pause.
        """
        pauses = self.pauses()
        while True:
            try:
                return await attempt()
            except TransientFailure as failure:
                ends = time.monotonic() + failure.retry_after_s + next(pauses, math.inf)
                if ends >= deadline:
                    raise
                logger.debug("trying again: %s", failure)
                while not called_off():
                    left_s = ends - time.monotonic()
                    if left_s <= 0:
                        break
                    await asyncio.sleep(min(left_s, POLL_S))
                else:
                    raise


class JsonClient:
    """Posts JSON to the paths of one base URL; belongs to one event loop.

    Connection errors, timeouts, 429 and 5xx are repeated, as `Retry` says; any other status, and an answer that is not
    JSON, fails at once. The callers' semaphores limit the number of connections. Messages never quote a header's value.
    """

    def __init__(self, base_url: str, *, timeout_s: float, retries: int, pause_s: float) -> None:
        self.base_url = base_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 30.0))  # per try
        self._patience_s = timeout_s * (retries + 1)  # for a call with its repeats
        self._retry = Retry(retries, pause_s)
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        called_off: Callable[[], bool] = never,
    ) -> Any:
        """The decoded answer. A `body` of bytes must be JSON and is sent unchanged.

        Raises RequestFailed if the last try failed, another would not help, or `called_off()` returned True.
        """
        return await self._retry.run(
            lambda: self._post_once(self.base_url + path, body, headers or {}),
            deadline=time.monotonic() + self._patience_s,
            called_off=called_off,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post_once(self, url: str, body: Any, headers: Mapping[str, str]) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            # Redirects are refused: they would take the headers, and with them a key, to whatever host they name.
            async with self._session.post(
                url, data=encoded, headers={**_JSON, **headers}, allow_redirects=False
            ) as response:
                if response.status == 200:
                    return await response.json(content_type=None)
                text = _without_secrets(await response.text(errors="replace"), headers)
                raise _failure(url, response.status, text, response.headers.get("Retry-After", "0"))
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            words = _without_secrets(str(error), headers) or type(error).__name__
            raise TransientFailure(f"{url}: {words}") from None  # the error may quote the headers
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"{url} answered something that is not JSON: {str(error)[:200]}") from error


def _failure(url: str, status: int, text: str, retry_after: str) -> RequestFailed:
    message = f"{url} answered {status}: {text[:300]}"
    failure = RequestFailed(message)
    if status == 429 or status >= 500:
        failure = TransientFailure(message)
        failure.retry_after_s = _seconds(retry_after)
    failure.status = status
    return failure


def _without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """The text of an answer with every word of our headers masked: a service may quote the key that it was sent."""
    for value in headers.values():
        for word in filter(None, value.split()):
            text = text.replace(word, "…")
    return text


def _seconds(retry_after: str) -> float:
    """Retry-After as seconds from now: the header holds seconds or a date."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
