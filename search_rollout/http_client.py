"""One URL that takes and gives JSON, with the retry policy that every service of a rollout shares."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import tenacity

logger = logging.getLogger(__name__)


class RequestFailed(Exception):
    """No usable answer came; the message names the URL and what happened."""


class _Transient(RequestFailed):
    """Trouble that another try may not meet."""


class JsonClient:
    """Posts JSON to one URL; belongs to one event loop.

    Connection errors, timeouts, 429 and 5xx are tried again, `retries` times at most, after random pauses whose bound
    doubles from `pause_s` to 16 times that. Any other status, and an answer that is not JSON, fails at once. The number
    of connections is not limited here: the callers' semaphores do that.
    """

    def __init__(self, url: str, *, timeout_s: float, retries: int, pause_s: float) -> None:
        self.url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 30.0))  # of each try
        self._retries = retries
        self._pause_s = pause_s
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, body: Any, headers: Mapping[str, str] | None = None, called_off: Callable[[], bool] = lambda: False
    ) -> Any:
        """The decoded answer.

        Raises RequestFailed when the tries are used up, another would not help, or `called_off()` is true after one.
        """
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=lambda state: state.attempt_number > self._retries or called_off(),
            wait=tenacity.wait_random_exponential(multiplier=self._pause_s, max=16 * self._pause_s),
            before_sleep=tenacity.before_sleep_log(logger, logging.DEBUG),
            reraise=True,
        )
        return await retrying(self._post_once, body, headers)

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post_once(self, body: Any, headers: Mapping[str, str] | None) -> Any:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector, trust_env=False)
        try:
            async with self._session.post(self.url, json=body, headers=headers) as response:
                if response.status == 200:
                    return await response.json(content_type=None)
                text = (await response.text(errors="replace"))[:300]
                trouble = _Transient if response.status == 429 or response.status >= 500 else RequestFailed
                raise trouble(f"{self.url} answered {response.status}: {text}")
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise _Transient(f"{self.url}: {str(error) or type(error).__name__}") from error
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"{self.url} answered something that is not JSON: {str(error)[:200]}") from error
