"""`GET /metrics`: counters and gauges of the server, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torchrl_ckpt.inference.admission import Admission
from torchrl_ckpt.inference.served_policy import ServedPolicy
from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import Usage

_BUCKETS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class ServerMetrics:
    """The metrics of one server, in their own registry."""

    def __init__(self, admission: Admission, policy: ServedPolicy) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Responses.", "route", "status")
        self._seconds = Histogram(
            "torchrl_ckpt_request_seconds",
            "Time from a request's arrival to the end of its response.",
            ["route"],
            buckets=_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._loads = self._counter("weight_loads", "Loads of weights.", "outcome")
        for outcome in ("loaded", "refused", "failed"):
            self._loads.labels(outcome)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answered requests.")
        self._completion_tokens = self._counter(
            "completion_tokens", "Completion tokens of answered requests."
        )
        self._gauge("requests_in_flight", "Requests that the engine works on.").set_function(
            lambda: admission.num_running
        )
        self._gauge("requests_queued", "Requests that wait for the engine.").set_function(
            lambda: admission.num_queued
        )
        self._gauge(
            "policy_version", "The served version; NaN if none was loaded, or weights are unknown."
        ).set_function(lambda: float("nan") if policy.version is None else policy.version)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(self, usage: Usage) -> None:
        """Count the tokens of a request."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._completion_tokens.inc(usage.completion_tokens)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the load in the block as `loaded`, `refused` (the earlier weights are still served)
        or `failed` (the weights are unknown)."""
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
    """Return the route that exposes `metrics`."""
    router = APIRouter()

    @router.get("/metrics")
    async def export() -> Response:
        return Response(
            exposition.generate_latest(metrics.registry),
            media_type=exposition.CONTENT_TYPE_PLAIN_0_0_4,
        )

    return router


class CountRequests:
    """ASGI middleware that counts and times every response, by route rather than path."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.monotonic()
        status = 500  # the response to an exception that passes through here

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.monotonic() - started_at
            self._metrics.count_request(route, status, seconds)
