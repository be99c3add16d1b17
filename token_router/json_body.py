"""The JSON object in a request's body."""

import json
from typing import Any

from aiohttp import web

from token_router.errors import bad_request


async def json_object(request: web.Request) -> dict[str, Any]:
    """Raises ApiError if the body is something else."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body is not JSON: {error}", "not_json") from error
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object, and is a {type(body).__name__}.", "not_an_object")
    return body


def refuse_streaming(body: dict[str, Any]) -> None:
    """Raises ApiError if the caller wants to be answered in parts."""
    if body.get("stream"):
        raise bad_request("The router does not stream; leave out `stream`.", "no_streaming")
