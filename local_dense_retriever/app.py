"""The routes: POST /retrieve, and GET /health, /ready, /metrics, /docs."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from local_dense_retriever.batcher import QueryFailedError, QueueFullError, SearchFailedError
from local_dense_retriever.docs_page import PAGE
from local_dense_retriever.searcher import Hit, UnavailableError
from local_dense_retriever.service import Service

MAX_TOPK = 100
MAX_QUERIES = 512  # in one request
MAX_QUERY_CHARACTERS = 10_000
MAX_BODY_BYTES = 2 * 2**20  # parsing one blocks all others, for 0.2 s at worst
BODY_TIMEOUT_S = 30.0  # for a whole body to arrive
MAX_PROBLEMS = 10  # maximum problems that a reply lists

CLIENT_GONE = 499  # for the metrics only: the client has hung up


def _not_blank(query: str) -> str:
    if not query.strip():
        raise ValueError("the query is blank")
    return query


Query = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS), AfterValidator(_not_blank)]


class RetrieveRequest(BaseModel):
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    topk: int | None = Field(default=None, ge=1, le=MAX_TOPK, description="passages per query; null: the server's own")
    return_scores: bool = False


class Document(BaseModel):
    id: str
    contents: str


class ScoredDocument(BaseModel):
    document: Document
    score: float


class RetrieveReply(BaseModel):
    """For each query its nearest passages, best first: documents, or documents with their scores."""

    result: list[list[Document]] | list[list[ScoredDocument]]


class Refusal(BaseModel):
    """Why a request was refused: a sentence, or for 422 the problems in the body."""

    detail: str | list[dict[str, Any]]


def encode_reply(found: list[list[Hit]], with_scores: bool) -> bytes:
    if with_scores:
        return to_json(
            {"result": [[{"document": h.passage._asdict(), "score": h.score} for h in hits] for hits in found]}
        )
    return to_json({"result": [[hit.passage._asdict() for hit in hits] for hits in found]})


def refusal(status: int, detail: str | list[dict[str, Any]], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)


def create_app(service: Service, default_topk: int = 3, api_key: str | None = None) -> FastAPI:
    """The server's routes. With an API key, /retrieve and /metrics ask for it as `Authorization: Bearer <key>`."""
    # FastAPI's own pages of documentation load scripts from a CDN.
    app = FastAPI(title="local dense retriever", docs_url=None, redoc_url=None)
    locks = [] if api_key is None else [Depends(_lock(api_key))]
    app.include_router(_status_routes(service, locks))

    # Reading and validating the body here instead of in FastAPI bounds its size and takes half the time.
    body = {"required": True, "content": {"application/json": {"schema": RetrieveRequest.model_json_schema()}}}
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (401, 408, 413, 422, 500, 503)
    }

    @app.post(
        "/retrieve",
        response_model=RetrieveReply,
        responses=refusals,
        openapi_extra={"requestBody": body},
        dependencies=locks,
    )
    async def retrieve(request: Request) -> Response:
        """Finds the passages nearest to each query."""
        began = time.perf_counter()
        response = await _answer(request, service, default_topk)
        service.metrics.requests.labels(response.status_code).inc()
        service.metrics.request_seconds.observe(time.perf_counter() - began)
        return response

    return app


def _lock(api_key: str) -> Callable[..., Awaitable[None]]:
    """A dependency that refuses requests without the key."""

    async def require_key(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        sent = b"" if given is None else given.credentials.encode("latin-1")  # the header's raw bytes
        if not hmac.compare_digest(sent, api_key.encode()):  # in constant time
            raise HTTPException(
                401, "this server needs a key: send Authorization: Bearer <key>", {"WWW-Authenticate": "Bearer"}
            )

    return require_key


def _status_routes(service: Service, locks: list[Any]) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @router.get("/ready", responses={503: {"description": "still loading"}})
    async def ready(response: Response) -> dict[str, Any]:
        """Answers 200 once everything is loaded; until then 503 with what is being loaded."""
        if service.loading is not None:
            response.status_code = 503
            return {"loading": service.loading}
        return {"status": "ready", **service.about}

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """A page to try the server from; 503 until everything is loaded."""
        if service.loading is not None:
            return Response(f"still loading {service.loading}\n", 503, {"Retry-After": "5"}, "text/plain")
        return HTMLResponse(PAGE)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: {"model": Refusal}, 501: {"model": Refusal}},
        dependencies=locks,
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        text = service.metrics.text()
        if text is None:
            return refusal(501, "metrics need the package prometheus-client: pip install prometheus-client")
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def _answer(request: Request, service: Service, default_topk: int) -> Response:
    try:
        async with service.upload(BODY_TIMEOUT_S):
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    problem = f"the body is larger than {MAX_BODY_BYTES} bytes: send fewer queries in a request"
                    return refusal(413, problem)
        asked = RetrieveRequest.model_validate_json(body)
        if service.batcher is None:
            return refusal(503, f"still loading {service.loading}", {"Retry-After": "5"})
        search = service.batcher.search(asked.queries, asked.topk or default_topk)
        reply = encode_reply(await _unless_gone(request, search), asked.return_scores)
        return Response(reply, media_type="application/json")
    except ValidationError as error:  # FastAPI's list, without the input, which may be long or invalid Unicode
        found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]
        return refusal(422, [{**one, "loc": ("body", *one["loc"])} for one in found])
    except TimeoutError:
        if service.stopping:
            return refusal(503, "the server is stopping", {"Retry-After": "5"})
        return refusal(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", {"Connection": "close"})
    except QueueFullError:
        return refusal(503, "too many queries are waiting: try again", {"Retry-After": "1"})
    except QueryFailedError as error:
        at = ("body", "queries", asked.queries.index(str(error)))
        problem = "this query fails while others succeed; the server's log says why"
        return refusal(422, [{"loc": at, "msg": problem, "type": "search_failed"}])
    except UnavailableError:
        return refusal(503, "the index does not answer; the server's log says why: try again", {"Retry-After": "5"})
    except SearchFailedError:
        return refusal(500, "the search failed; the server's log says why")
    except asyncio.CancelledError:  # only the server cancels it, after its stop timeout
        return refusal(503, "the server is stopping", {"Retry-After": "5"})
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, list[list[Hit]]]) -> list[list[Hit]]:
    """The result of `work`. If the client hangs up, cancels `work` and raises ClientDisconnect."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
