"""A service that takes and gives JSON, with the retry policy that every service of a rollout shares."""

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import tenacity

logger = logging.getLogger(__name__)

_JSON = {"Content-Type": "application/json"}


class RequestFailed(Exception):
    """No usable answer came; the message names the URL and what happened."""

    status: int | None = None  # of the answer, if there was one


class _Transient(RequestFailed):
    """Trouble that another try may not meet."""


class JsonClient:
    """Posts JSON to the paths of one base URL; belongs to one event loop.

    Connection errors, timeouts, 429 and 5xx are tried again, `retries` times at most, after random pauses whose bound
    doubles from `pause_s` to 16 times that. Any other status, and an answer that is not JSON, fails at once. The number
    of connections is not limited here: the callers' semaphores do that.
    """

    def __init__(self, base_url: str, *, timeout_s: float, retries: int, pause_s: float) -> None:
        self.base_url = base_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 30.0))  # of each try
        self._retries = retries
        self._pause_s = pause_s
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str] | None = None,
        called_off: Callable[[], bool] = lambda: False,
    ) -> Any:
        """The decoded answer; a `body` of bytes is JSON already.

        Raises RequestFailed when the tries are used up, another would not help, or `called_off()` is true after one.
        """
        url = self.base_url + path
        try:
            return await self._post_once(url, body, headers)  # almost always; setting up retries costs more than a call
        except _Transient:
            if self._retries == 0 or called_off():
                raise
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=lambda state: state.attempt_number >= self._retries or called_off(),
            wait=tenacity.wait_random_exponential(multiplier=self._pause_s, max=16 * self._pause_s),
            before_sleep=tenacity.before_sleep_log(logger, logging.DEBUG),
            reraise=True,
        )
        await asyncio.sleep(random.uniform(0, self._pause_s))
        return await retrying(self._post_once, url, body, headers)

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post_once(self, url: str, body: Any, headers: Mapping[str, str] | None) -> Any:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector, trust_env=False)
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            async with self._session.post(url, data=encoded, headers={**_JSON, **(headers or {})}) as response:
                if response.status == 200:
                    return await response.json(content_type=None)
                text = (await response.text(errors="replace"))[:300]
                trouble = _Transient if response.status == 429 or response.status >= 500 else RequestFailed
                failure = trouble(f"{url} answered {response.status}: {text}")
                failure.status = response.status
                raise failure
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise _Transient(f"{url}: {str(error) or type(error).__name__}") from error
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"{url} answered something that is not JSON: {str(error)[:200]}") from error
