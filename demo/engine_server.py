"""SGLang's `/generate` over HTTP, in front of the demo's engine.

    python -m demo.engine_server --model DIR --port 30000

It supports the part of the API that rollouts need. Input: `{"input_ids" or "text", "sampling_params",
"return_logprob", "rid"}`. Output: `{"text", "output_ids", "meta_info"}`, where `meta_info.output_token_logprobs` holds
`[log_prob, token_id, null]` triples. With `logprob_start_len`, `meta_info.input_token_logprobs` holds such triples for
the prompt's tokens from that position on; the first log_prob is null. `POST /abort_request {"rid"}` or
`{"abort_all": true}` aborts requests. `tests/engine/` compares all this with SGLang itself.
"""

import argparse
import asyncio
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request as HttpRequest

from demo.engine import SLOTS, Engine, Request, SamplingParams

KNOWN_FIELDS = {
    "input_ids",
    "text",
    "sampling_params",
    "return_logprob",
    "logprob_start_len",
    "rid",
    "stream",
    "return_text_in_logprobs",
}


def create_app(engine: Engine) -> FastAPI:
    """The HTTP application for a running engine."""
    app = FastAPI(title="demo engine", docs_url=None)

    @app.get("/health")
    @app.get("/health_generate")
    async def health() -> dict:
        return {"status": "ok"}

    @app.post("/generate")
    async def generate(http_request: HttpRequest) -> JSONResponse:
        try:
            body = await http_request.json()
            request = _parse(body, engine)
            done = engine.submit(request)
        except ValueError as error:  # json.JSONDecodeError is one
            return _error(400, str(error))
        except RuntimeError as error:  # the engine is closed
            return _error(503, str(error))
        try:
            finished = await asyncio.wrap_future(done)
        except Exception as error:  # the engine's step failed, and its log has the traceback
            return _error(500, f"The engine failed: {error!r}")
        return JSONResponse(_reply(finished, engine, with_log_probs=bool(body.get("return_logprob"))))

    @app.post("/abort_request")
    async def abort(http_request: HttpRequest) -> JSONResponse:
        try:
            body = await http_request.json()
        except ValueError as error:
            return _error(400, str(error))
        if not isinstance(body, dict) or not (body.get("abort_all") or body.get("rid")):
            return _error(400, "Give rid, or abort_all: true.")
        engine.abort(None if body.get("abort_all") else body["rid"])
        return JSONResponse({})

    return app


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status_code=status)


def _parse(body: object, engine: Engine) -> Request:
    if not isinstance(body, dict):
        raise ValueError("The body must be a JSON object.")
    unknown = sorted(set(body) - KNOWN_FIELDS)
    if unknown or body.get("stream"):
        raise ValueError(f"This engine does not know {unknown or ['stream']}.")
    ids, text = body.get("input_ids"), body.get("text")
    if (ids is None) == (text is None):
        raise ValueError("Give either input_ids or text.")
    if text is not None:
        if not isinstance(text, str):
            raise ValueError("text must be a string.")
        ids = engine.tokenizer.encode(text)
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):  # a bool is an int to isinstance
        raise ValueError("input_ids must be a list of integers.")
    request_id, params = body.get("rid") or uuid.uuid4().hex, body.get("sampling_params") or {}
    if not isinstance(request_id, str) or not isinstance(params, dict):
        raise ValueError("rid must be a string and sampling_params a JSON object.")
    start = body.get("logprob_start_len")
    if start is not None and type(start) is not int:
        raise ValueError("logprob_start_len must be an integer.")
    return Request(
        request_id=request_id,
        input_ids=ids,
        params=SamplingParams.from_json(params),
        logprob_start_len=start if start is not None and body.get("return_logprob") else -1,
    )


def _reply(request: Request, engine: Engine, *, with_log_probs: bool) -> dict:
    params = request.params
    assert request.finish_reason is not None
    matched = request.finish_reason.get("matched")
    trim = matched is not None and not params.no_stop_trim  # trims only the text; the ids stay as sampled
    ids = request.output_ids[:-1] if trim and isinstance(matched, int) else request.output_ids
    text = engine.tokenizer.decode(ids, skip_special_tokens=params.skip_special_tokens)
    if trim and isinstance(matched, str):
        text = text.partition(matched)[0]  # absent if it is a special token, which decoding skips
    meta_info = {
        "id": request.request_id,
        "finish_reason": request.finish_reason,
        "prompt_tokens": len(request.input_ids),
        "completion_tokens": len(request.output_ids),
        "cached_tokens": request.cached_tokens,
        "weight_version": request.weight_version,
    }
    if with_log_probs:
        pairs = zip(request.log_probs, request.output_ids, strict=True)
        meta_info["output_token_logprobs"] = [[log_prob, token, None] for log_prob, token in pairs]
    if with_log_probs and request.logprob_start_len >= 0:
        prompt_ids = request.input_ids[request.logprob_start_len :]
        prompt_pairs = zip(request.input_log_probs, prompt_ids, strict=False)  # empty if aborted while waiting
        meta_info["input_token_logprobs"] = [[log_prob, token, None] for log_prob, token in prompt_pairs]
    return {"text": text, "output_ids": request.output_ids, "meta_info": meta_info}


@contextmanager
def serving(engine: Engine) -> Iterator[int]:
    """Serves an engine on loopback from a thread; yields the port."""
    with _take_port(0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(engine), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="engine-http", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("The engine's HTTP server did not start; its log says why.")
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def _take_port(port: int) -> socket.socket:
    """A socket bound to a loopback port, not listening yet. Raises ValueError, in one sentence, if that fails."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(f"Port {port} cannot be used ({error}); give another --port.") from error
    return listener


def main(argv: list[str] | None = None) -> int:
    """Serves a model folder until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a Hugging Face model folder")
    add("--port", type=int, default=30000, help="port to listen on; 0 picks a free one")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--slots", type=int, default=SLOTS, help="requests that run at the same time")
    add("--max-length", type=int, default=2048, help="maximum tokens per request, prompt and reply together")
    args = parser.parse_args(argv)
    from demo.models import load_policy

    try:
        with _take_port(args.port) as listener:  # first, to detect a taken port before loading the model
            model, tokenizer = load_policy(args.model)
            with Engine(
                model, tokenizer, dtype=getattr(torch, args.dtype), slots=args.slots, max_length=args.max_length
            ) as engine:
                app = create_app(engine)
                del model
                print(f"engine: {args.model} on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
                uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # uvicorn has shut down cleanly and passes Ctrl-C on
        print("stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
