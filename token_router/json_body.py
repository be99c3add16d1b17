"""The JSON object in a request's body."""

import json
from typing import Any

from aiohttp import web

from token_router.errors import bad_request

MAX_BRACKETS = 200_000  # parsing a million lists blocks all other requests for a second


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
