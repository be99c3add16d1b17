"""Errors as HTTP responses, a status and OpenAI's error object; and the JSON object in a request's body."""

import json
import logging
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from search_rollout.engine.sglang_reply import EngineError

MAX_BRACKETS = 200_000  # parsing a million lists blocks all other requests for a second

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """Ends a request with this status. `code` is for programs, the message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def bad_request(message: str, code: str = "bad_request") -> ApiError:
    """An error of the caller: status 400."""
    return ApiError(400, code, message)


async def json_object(request: web.Request) -> dict[str, Any]:
    """The body's JSON object. Raises ApiError if the body is anything else, or asks for a stream."""
    raw = await request.read()
    if raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        raise bad_request(f"The body has more than {MAX_BRACKETS} opening brackets.", "too_complex")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body is not JSON: {error}", "not_json") from error
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object, not a {type(body).__name__}.", "not_an_object")
    if body.get("stream"):
        raise bad_request("The router does not stream; leave out `stream`.", "no_streaming")
    return body


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns any exception of a route into a response; bugs of the router are logged with their traceback."""
    try:
        return await handler(request)
    except ApiError as error:
        logger.debug("%s %s: %d %s", request.method, request.path, error.status, error)
        return _answer(error.status, error.code, str(error))
    except EngineError as error:
        return _answer(502, "bad_reply", f"The worker's reply cannot be used: {error}")
    except web.HTTPRequestEntityTooLarge:
        message = f"The body is larger than {request.client_max_size} bytes; --max-body-mb sets the limit."
        return _answer(413, "body_too_large", message)
    except web.RequestPayloadError:
        return _answer(400, "bad_body", "The body does not match its headers.")
    except UnicodeError as error:
        return _answer(400, "bad_text", f"The request is not valid text: {error}")
    except RecursionError:
        return _answer(400, "too_deep", "The body is nested too deeply.")
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return _answer(500, "internal_error", "The router failed; its log has the traceback.")


def _answer(status: int, code: str, message: str) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind, "code": code}}, status=status)
