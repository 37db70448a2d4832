"""The application: what each address answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from solid_ext._native import build_info
from solid_ext.device.model import ITEMS, STATIC
from solid_ext.serve.histories import known_items
from solid_ext.serve.recommend import Recommendation
from solid_ext.service import reasons
from solid_ext.service.batching import Batcher
from solid_ext.service.guard import Guard
from solid_ext.service.limits import ID_LENGTH, MOST_K, QUERY_LENGTH, Limits
from solid_ext.service.metrics import Metrics
from solid_ext.service.model import Follower
from solid_ext.service.problem import Problem, problem_response, sentence_of
from solid_ext.service.schemas import (
    DeviceItems,
    ExamplesAnswer,
    Health,
    ItemsAnswer,
    ObserveAnswer,
    ObserveAsked,
    PersonalAsked,
    RecommendAnswer,
    RecommendAsked,
    Refusal,
    SimilarAnswer,
)
from solid_ext.service.served import Question, answer, plain
from solid_ext.service.sessions import Sessions

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/device.js": ("device.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}
ASIDE = 2  # titles, reasons and the like that are looked up at a time: each holds the interpreter for a while
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "A safetensors file."}
}
STATUSES = {
    400: "Not a request of HTTP and JSON.",
    401: "The service has a token, and the request has another one or none.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    421: "The service is not for this host name.",
    422: "A value that cannot be answered.",
    431: "The head is too large.",
    503: "Too much to do: try again.",
}
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": description} for status, description in STATUSES.items()
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Refusal, "description": "No such session."}}


async def refuse_other_fields(request: Request) -> None:
    """Refuse a field of the address that the route does not read, as the body refuses one, or that stands twice."""
    own, what = {field.alias for field in request.scope["route"].dependant.query_params}, request.url.path.strip("/")
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in own:
            raise Problem(422, f"{what}: expected fields of its own, got {name[:80]!r}")
        if given.count(name) > 1:
            raise Problem(422, f"{what}: expected {name} once, got it {given.count(name)} times")


OWN_FIELDS = [Depends(refuse_other_fields)]


def create_app(
    follower: Follower,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    hosts: set[str] | None = None,
) -> Guard:
    """The service as an ASGI application.

    One thread computes recommendations, one loads a run that takes over, and some look up titles and reasons, while the
    event loop reads and writes requests.

    Args:
        follower: of the model's folder.
        limits: of a request, and of what is kept.
        token: that every request but for the page and /health has to bear; None for none.
        hosts: names that the service may be called by; None for any.
    """
    limits = limits or Limits()
    metrics = Metrics()
    sessions = Sessions(limits.sessions, limits.session_seconds)

    def answered(questions: Sequence[Question]) -> list[list[Recommendation] | Exception]:
        metrics.batch.observe(len(questions))
        return answer(questions)

    batcher: Batcher[Question, list[Recommendation]] = Batcher(answered, limits.batch, limits.waiting)

    def loaded(outcome: str) -> None:
        metrics.reloads.labels(outcome).inc()
        metrics.model.clear()
        metrics.model.labels(follower.current.name).set(follower.current.catalogue.num_items)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        metrics.model.labels(follower.current.name).set(follower.current.catalogue.num_items)
        with ThreadPoolExecutor(1, "recommend") as batcher.executor, ThreadPoolExecutor(1, "reload") as reload:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follower.follow, limits.poll_seconds, reload, loaded)
                yield
                tasks.cancel_scope.cancel()
        batcher.executor = None

    app = FastAPI(
        title="solid_ext",
        version=build_info()["version"],
        description="Recommendations of a trained model.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=REFUSED,
    )

    few = anyio.CapacityLimiter(ASIDE)

    async def aside(work: Any, *arguments: Any) -> Any:
        """The result of work that is not for the event loop."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=few)

    @app.post(
        "/recommend",
        response_model=RecommendAnswer,
        response_model_exclude_unset=True,
        responses=NOT_FOUND,
        dependencies=OWN_FIELDS,
    )
    async def recommend(asked: RecommendAsked) -> Response:
        """The best items for a history, or for what a session has observed; for neither, what a newcomer gets."""
        served = follower.current
        history: list[Any] = asked.history or []
        unknown = asked.unknown
        if asked.session is not None:
            if asked.history is not None:
                raise Problem(422, "recommend: expected a history or a session, got both")
            history, unknown = list(events_of("recommend", asked.session)), "ignore"
        question = served.question(history, asked.k, asked.exclude_history, asked.exclude, asked.include, unknown)
        entries = await batcher.ask(question)
        if asked.reasons:
            numbers = question.history.tolist()
            found = await aside(reasons.recommended, served, numbers, entries)
            seen = await aside(reasons.seen, served, numbers)
            return as_json({"model": served.name, "items": found, "history": seen})
        return as_json({"model": served.name, "items": shown(entries)})

    @app.post("/observe", response_model=ObserveAnswer, responses=NOT_FOUND, dependencies=OWN_FIELDS)
    async def observe(asked: ObserveAsked) -> Response:
        """Add an event to a session, or begin one with it: its name is for /recommend and further events."""
        known_items("observe", "histories", follower.current.catalogue, [[asked.item]], "refuse")
        name = asked.session
        if name is None:
            name = sessions.begin()
        events = events_of("observe", name)
        events.append(asked.item)
        metrics.sessions.set(len(sessions))
        return as_json({"session": name, "events": len(events)})

    def events_of(what: str, name: str) -> Any:
        events = sessions.events(name)
        if events is None:
            raise Problem(
                404,
                f"{what}: expected a session that goes on, got {name!r} (one ends {limits.session_seconds:g} s after "
                "its last use)",
            )
        return events

    @app.get("/similar", response_model=SimilarAnswer, dependencies=OWN_FIELDS)
    async def similar(
        item: Annotated[str, Query(max_length=ID_LENGTH)], k: Annotated[int, Query(ge=1, le=MOST_K)] = 10
    ) -> Response:
        """The items that are most like one."""
        served = follower.current
        entries = await aside(served.similar, item, k)
        return as_json({"model": served.name, "items": shown(entries)})

    @app.get("/items", response_model=ItemsAnswer, dependencies=OWN_FIELDS)
    async def items(
        query: Annotated[str, Query(max_length=QUERY_LENGTH)] = "", limit: Annotated[int, Query(ge=1, le=MOST_K)] = 20
    ) -> Response:
        """Items whose title has the query in it; without a query the most popular ones."""
        return as_json({"items": await aside(follower.current.search, query, limit)})

    @app.get("/examples", response_model=ExamplesAnswer, dependencies=OWN_FIELDS)
    async def examples() -> Response:
        """Histories of users who are made up of popular items."""
        return as_json({"examples": follower.current.examples})

    @app.get("/device/static", response_class=Response, responses=BYTES, dependencies=OWN_FIELDS)
    async def device_static() -> Response:
        """What every device holds of the model."""
        return Response((await aside(follower.current.on_device))[STATIC], media_type="application/octet-stream")

    @app.get("/device/items", response_model=DeviceItems, dependencies=OWN_FIELDS)
    async def device_items() -> Response:
        """The ids and titles of its items, in its order."""
        return Response((await aside(follower.current.on_device))[ITEMS], media_type="application/json")

    @app.post("/device/personal", response_class=Response, responses=BYTES, dependencies=OWN_FIELDS)
    async def device_personal(asked: PersonalAsked) -> Response:
        """What makes a device's model one person's: the layers that a history generates."""
        blob = await aside(follower.current.personalize, asked.history, asked.unknown)
        return Response(blob, media_type="application/octet-stream")

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether the service answers, and with which model."""
        served = follower.current
        return as_json(
            {
                "status": "ok",
                "model": served.name,
                "items": served.catalogue.num_items,
                "reload_failed": follower.failed is not None,
            }
        )

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measures() -> Response:
        """Counters in the text format of Prometheus."""
        metrics.sessions.set(len(sessions))
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    for address, (name, kind) in PAGE.items():
        content = (files("solid_ext.service") / "page" / name).read_bytes()
        app.add_api_route(address, _page(content, kind), include_in_schema=False)

    @app.exception_handler(Problem)
    async def refuse(_: Request, problem: Problem) -> Response:
        return problem_response(problem.status, str(problem))

    @app.exception_handler(RequestValidationError)
    async def refuse_values(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type")
        return problem_response(422, sentence_of(request.url.path.strip("/"), error.errors(), kind))

    async def refuse_argument(_: Request, error: Exception) -> Response:
        return problem_response(422, str(error))

    app.add_exception_handler(ValueError, refuse_argument)
    app.add_exception_handler(TypeError, refuse_argument)

    @app.exception_handler(HTTPException)
    async def refuse_request(request: Request, error: HTTPException) -> Response:
        known = ", ".join(sorted(path for path in paths if path not in PAGE))
        sentences = {
            400: f"{request.url.path.strip('/')[:80]}: expected a body of JSON, got one that cannot be read",
            404: f"expected one of {known}, got {request.url.path[:80]!r}",
            405: f"expected another method for {request.url.path[:80]!r}, got {request.method[:20]!r}",
        }
        return problem_response(
            error.status_code, sentences.get(error.status_code, str(error.detail)), dict(error.headers or {})
        )

    paths = {*app.openapi()["paths"], *PAGE, "/openapi.json"}
    return Guard(app, limits, metrics, paths, {*PAGE, "/openapi.json", "/health"}, token, hosts)


def shown(entries: Sequence[Recommendation]) -> list[dict[str, Any]]:
    """Recommendations as JSON has them."""
    return [{"item": plain(raw), "title": title, "score": score} for raw, title, score in entries]


def as_json(value: Any) -> Response:
    """What is already of the declared shape, which nobody has to check again."""
    return Response(json.dumps(value), media_type="application/json")


def _page(content: bytes, kind: str) -> Any:
    async def page() -> Response:
        return Response(content, media_type=kind)

    return page
