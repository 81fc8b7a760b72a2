"""What a request can do wrong, and the answers: OpenAI's form, never a stack trace."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from torchrl_ckpt.errors import ModelError
from torchrl_ckpt.exchange.completions import ErrorAnswer, Failure

log = logging.getLogger(__name__)


class Refused(HTTPException):
    """Base of the answers that are not 200."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(self.status, message)
        self.param = param


class BadRequest(Refused):
    """A request that cannot be served as it stands."""


class WrongKey(Refused):
    """No key, or not the server's."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(Refused):
    """Weights from a place that was not allowed."""

    status = 403
    type = "permission_error"
    code = "directory_not_allowed"


class NotFound(Refused):
    """A model or a directory that is not there."""

    status = 404
    code = "not_found"


class TooLarge(Refused):
    """A body beyond the limit."""

    status = 413
    code = "request_too_large"


class WeightsUnknown(Refused):
    """The engine's weights are not those of any policy."""

    status = 503
    type = "server_error"
    code = "weights_unknown"


def answer_failures(app: FastAPI) -> None:
    """Answer every exception of `app`'s routes in OpenAI's form."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ModelError, _unusable_weights)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crashed)


def _answer(
    status: int,
    message: str,
    type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> JSONResponse:
    body = ErrorAnswer(error=Failure(message=message, type=type, param=param, code=code))
    return JSONResponse(body.model_dump(), status)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    if error.status >= 500:
        log.error(
            "%s %s: %s", request.method, request.url.path, error.detail, exc_info=error.__cause__
        )
    return _answer(error.status, error.detail, error.type, error.param, error.code)


async def _unusable_weights(request: Request, error: Exception) -> JSONResponse:
    return _answer(400, str(error), param="directory", code="unusable_weights")


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """One of the request's mistakes: the innermost, since a form that fits nearly fails late."""
    assert isinstance(error, RequestValidationError)
    mistake = max(error.errors(), key=lambda mistake: len(mistake["loc"]))
    param = next((str(part) for part in mistake["loc"][1:]), None)
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "this parameter is not supported"
    return _answer(400, f"{param}: {message}" if param else message, param=param)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _crashed(request: Request, error: Exception) -> JSONResponse:
    return _answer(500, "the server failed on this request; see its log", "server_error")
