"""A service that takes and gives JSON, and the one rule of what is tried again, and when.

RequestFailed           no usable answer came
├── TransientFailure    another try may bring one: connection trouble, timeout, 429, 5xx
└── ServiceRefused      none will until somebody acts: a wrong key, a quota that is used up
"""

import email.utils
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
import tenacity

logger = logging.getLogger(__name__)

_JSON = {"Content-Type": "application/json"}
T = TypeVar("T")


class RequestFailed(Exception):
    """No usable answer came; the message names the URL and what happened."""

    status: int | None = None  # of the answer, if there was one


class TransientFailure(RequestFailed):
    """Trouble that another try may not meet."""

    retry_after_s: float = 0.0  # the service asked for so much patience


class ServiceRefused(RequestFailed):
    """The service will refuse every call until somebody acts; the message says what to do."""


def never() -> bool:
    """Nothing calls the request off."""
    return False


class Retry:
    """Runs an attempt again after a TransientFailure, `retries` times at most.

    Pauses are random, their bound doubles from `pause_s` to 16 times that, and Retry-After is waited out before them.
    """

    def __init__(self, retries: int, pause_s: float) -> None:
        self._retries = retries
        self._jitter = tenacity.wait_random_exponential(multiplier=pause_s, max=16 * pause_s)

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        deadline: float = math.inf,
        called_off: Callable[[], bool] = never,
    ) -> T:
        """What the first successful attempt returns; raises the failure of the last one.

        There is none after `deadline`, by time.monotonic(), nor once `called_off()` is true.
        """
        first: TransientFailure | None
        try:
            return await attempt()  # almost always; setting up retries costs more than a call
        except TransientFailure as failure:
            first = failure

        async def again() -> T:
            nonlocal first
            if first is not None:
                failure, first = first, None
                raise failure
            return await attempt()

        def left() -> float:
            return max(deadline - time.monotonic(), 0.0)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TransientFailure),
            stop=lambda state: state.attempt_number > self._retries or called_off() or _retry_after_s(state) >= left(),
            wait=lambda state: min(_retry_after_s(state) + self._jitter(state), left()),
            before_sleep=tenacity.before_sleep_log(logger, logging.DEBUG),
            reraise=True,
        )
        return await retrying(again)


class JsonClient:
    """Posts JSON to the paths of one base URL; belongs to one event loop.

    Connection errors, timeouts, 429 and 5xx are tried again, as `Retry` says; any other status, and an answer that is
    not JSON, fails at once. The number of connections is not limited here: the callers' semaphores do that. What is
    sent in headers never stands in a message.
    """

    def __init__(self, base_url: str, *, timeout_s: float, retries: int, pause_s: float) -> None:
        self.base_url = base_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 30.0))  # of each try
        self._patience_s = timeout_s * (retries + 1)  # with a call and all its repeats
        self._retry = Retry(retries, pause_s)
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        called_off: Callable[[], bool] = never,
    ) -> Any:
        """The decoded answer; a `body` of bytes is JSON already.

        Raises RequestFailed when the tries are used up, another would not help, or `called_off()` is true after one.
        """
        return await self._retry.run(
            lambda: self._post_once(self.base_url + path, body, headers or {}),
            deadline=time.monotonic() + self._patience_s,
            called_off=called_off,
        )

    async def close(self) -> None:
        """Closes the connections."""
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
                raise _failure(url, response.status, text, response.headers.get("Retry-After"))
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            words = _without_secrets(str(error), headers) or type(error).__name__
            raise TransientFailure(f"{url}: {words}") from None  # the error may quote the headers
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"{url} answered something that is not JSON: {str(error)[:200]}") from error


def _failure(url: str, status: int, text: str, retry_after: str | None) -> RequestFailed:
    message = f"{url} answered {status}: {text[:300]}"
    failure = RequestFailed(message)
    if status == 429 or status >= 500:
        failure = TransientFailure(message)
        failure.retry_after_s = _seconds(retry_after)
    failure.status = status
    return failure


def _without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """A service's own words, which may repeat the key that it was sent, without it."""
    for value in headers.values():
        for word in filter(None, value.split()):
            text = text.replace(word, "…")
    return text


def _seconds(retry_after: str | None) -> float:
    """Retry-After as seconds from now: the header holds seconds or a date."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _retry_after_s(state: tenacity.RetryCallState) -> float:
    failure = state.outcome.exception() if state.outcome else None
    return failure.retry_after_s if isinstance(failure, TransientFailure) else 0.0
