"""The application: which path leads where."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edgeforge import __version__
from edgeforge.runtime.model import Model
from edgeforge.serving.admission import FairQueue
from edgeforge.serving.answering import Answering
from edgeforge.serving.chat import ChatForm
from edgeforge.serving.completions import CompletionForm
from edgeforge.serving.endpoint import AnswerEndpoint, Limits, Service
from edgeforge.serving.forms import Served
from edgeforge.serving.guard import Guard
from edgeforge.serving.metrics import CONTENT_TYPE, Metrics
from edgeforge.serving.openapi import document
from edgeforge.serving.page_files import PageFile, page_files
from edgeforge.serving.problems import Refusal
from edgeforge.serving.requests import ChatRequest, CompletionRequest
from edgeforge.serving.responses import Health, ModelCard, ModelList


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`slots` answers run at once, `places` more wait. No `hosts`: the server answers to any name."""

    name: str
    slots: int
    places: int
    limits: Limits
    api_keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()


def make_service(model: Model, settings: Settings) -> Service:
    queue = FairQueue(slots=settings.slots, places=settings.places)
    metrics = Metrics(queue)
    manifest = (model.bundle / "manifest.json").read_bytes()
    fingerprint = f"fp_{hashlib.sha256(manifest).hexdigest()[:12]}"
    return Service(
        served=Served(model=model, name=settings.name, fingerprint=fingerprint),
        limits=settings.limits,
        queue=queue,
        answering=Answering(slots=settings.slots, metrics=metrics),
        metrics=metrics,
    )


def make_app(service: Service, settings: Settings) -> Starlette:
    """The ASGI application."""
    routes: list[BaseRoute] = [
        Route("/v1/chat/completions", AnswerEndpoint(service, ChatRequest, ChatForm), methods=["POST"]),
        Route("/v1/completions", AnswerEndpoint(service, CompletionRequest, CompletionForm), methods=["POST"]),
        *_information(service, settings),
        *(_page_route(path, file) for path, file in page_files().items()),
    ]
    guard = Middleware(
        Guard,
        api_keys=settings.api_keys,
        hosts=settings.hosts,
        paths={route.path for route in routes if isinstance(route, Route)},
        metrics=service.metrics,
    )
    return Starlette(
        routes=routes,
        middleware=[*_cors(settings.origins), guard],
        exception_handlers={HTTPException: _no_such_page},
    )


def _information(service: Service, settings: Settings) -> list[BaseRoute]:
    served = service.served
    card = ModelCard(
        id=served.name,
        object="model",
        created=served.started,
        owned_by="edgeforge",
        context_length=served.model.context_length,
    )
    openapi = document(version=__version__, keys=bool(settings.api_keys))

    async def models(request: Request) -> Response:
        return _json(ModelList(object="list", data=[card]).json_text())

    async def model(request: Request) -> Response:
        asked = request.path_params["model"]
        if asked != served.name:
            raise Refusal(404, f"there is no model {asked!r} here, only {served.name!r}", code="model_not_found")
        return _json(card.json_text())

    async def health(request: Request) -> Response:
        return _json(_health(service).json_text())

    async def ready(request: Request) -> Response:
        now = _health(service)
        return _json(now.json_text(), status=200 if now.status == "ok" else 503)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def interface(request: Request) -> Response:
        return JSONResponse(openapi)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", interface),
    ]


def _health(service: Service) -> Health:
    queue = service.queue
    return Health(status="stopping" if queue.closed else "ok", running=queue.running, waiting=queue.waiting)


def _page_route(path: str, file: PageFile) -> Route:
    async def page(request: Request) -> Response:
        return Response(file.content, media_type=file.media_type, headers=dict(file.headers))

    return Route(path, page)


def _cors(origins: Sequence[str]) -> list[Middleware]:
    if not origins:
        return []
    allowed = ["authorization", "content-type"]
    return [Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=allowed)]


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"there is no {request.method} {request.url.path}" if error.status_code in (404, 405) else error.detail
    return JSONResponse(Refusal(error.status_code, said).body(), error.status_code, headers=error.headers)


def _json(text: str, *, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")
