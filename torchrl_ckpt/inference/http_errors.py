"""What a request can do wrong, and the answers: OpenAI's form, never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import ErrorAnswer, Failure

_log = logging.getLogger(__name__)


class Refused(HTTPException):
    """Base of the answers that are not 200."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(
        self, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(self.status, message, headers)
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


class TooManyRequests(Refused):
    """More requests wait than may."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class ClientGone(Refused):
    """The client has disconnected. Nobody reads this answer; the metrics count it."""

    status = 499


class WeightsUnknown(Refused):
    """The engine's weights are not those of any policy."""

    status = 503
    type = "server_error"
    code = "weights_unknown"


class EngineDied(Refused):
    """The engine can do nothing any more; the server ends within a second or two."""

    status = 500
    type = "server_error"
    code = "engine_died"


def answer_failures(app: FastAPI) -> None:
    """Answer every exception of `app`'s routes in OpenAI's form."""
    for kind in (Refused, ModelError, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, _answer_http)


def told(error: BaseException) -> tuple[int, Failure]:
    """The status of an error, and what the client is told of it: the inside of nothing."""
    match error:
        case Refused():
            return error.status, Failure(
                message=error.detail, type=error.type, param=error.param, code=error.code
            )
        case ModelError():
            return 400, _bad(str(error), param="directory", code="unusable_weights")
        case RequestValidationError():
            return 400, _invalid(error)
        case _:
            return 500, Failure(
                message="the server failed on this request; see its log", type="server_error"
            )


def record(where: str, error: BaseException) -> None:
    """Leave in the log what is the server's own failure; `where` is such as `POST /weights`."""
    status, failure = told(error)
    if status >= 500:
        cause = error.__cause__ if isinstance(error, Refused) else error
        _log.error("%s: %s", where, failure.message, exc_info=cause)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    # What is no `Refused` is logged by the server, which sees it when it has been answered.
    if isinstance(error, Refused):
        record(f"{request.method} {request.url.path}", error)
    status, failure = told(error)
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse(ErrorAnswer(error=failure).model_dump(), status, headers)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """The framework's own refusals: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    failure = _bad(f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(ErrorAnswer(error=failure).model_dump(), error.status_code, error.headers)


def _bad(message: str, param: str | None = None, code: str | None = None) -> Failure:
    return Failure(message=message, type="invalid_request_error", param=param, code=code)


def _invalid(error: RequestValidationError) -> Failure:
    """One of the request's mistakes: the innermost, since a form that fits nearly fails late."""
    mistake = max(error.errors(), key=lambda mistake: len(mistake["loc"]))
    if mistake["type"] == "json_invalid":
        return _bad("the body is not JSON")
    param = next((str(part) for part in mistake["loc"][1:]), None)
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "this parameter is not supported"
    return _bad(f"{param}: {message}" if param else message, param=param)
