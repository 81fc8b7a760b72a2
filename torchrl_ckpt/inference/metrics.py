"""`GET /metrics`: what the server has done and is doing, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrl_ckpt.inference.limits import Admission
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import Usage

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class ServerMetrics:
    """The counts of one server, in a registry of its own."""

    def __init__(self, admission: Admission, policy: ServedPolicy) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Answers.", "route", "status")
        self._seconds = Histogram(
            "torchrl_ckpt_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._loads = self._counter("weight_loads", "Loads of weights.", "outcome")
        for outcome in ("loaded", "refused", "failed"):
            self._loads.labels(outcome)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens read.")
        self._completion_tokens = self._counter("completion_tokens", "Tokens given out.")
        self._gauge(
            "requests_in_flight", "Requests that have a place with the engine."
        ).set_function(lambda: admission.num_running)
        self._gauge("requests_queued", "Requests that wait for a place.").set_function(
            lambda: admission.num_queued
        )
        self._gauge(
            "policy_version", "The version that is served; NaN where nobody has sent one."
        ).set_function(lambda: float("nan") if policy.version is None else policy.version)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Add an answer."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(self, usage: Usage) -> None:
        """Add a request's tokens."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._completion_tokens.inc(usage.completion_tokens)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the load in the block: `refused` left the earlier weights, `failed` none."""
        outcome = "failed"
        try:
            yield
            outcome = "loaded"
        except ModelError:
            outcome = "refused"
            raise
        finally:
            self._loads.labels(outcome).inc()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"torchrl_ckpt_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"torchrl_ckpt_{name}", documentation, registry=self.registry)


def metric_routes(metrics: ServerMetrics) -> APIRouter:
    """The route that shows `metrics`."""
    router = APIRouter()

    @router.get("/metrics")
    async def show() -> Response:
        return Response(
            exposition.generate_latest(metrics.registry),
            media_type=exposition.CONTENT_TYPE_PLAIN_0_0_4,
        )

    return router


class CountRequests:
    """ASGI middleware that counts and times every answer, by route and not by path."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 500  # what the server answers to an exception that comes through here

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.monotonic() - began
            self._metrics.count_request(route, status, seconds)
