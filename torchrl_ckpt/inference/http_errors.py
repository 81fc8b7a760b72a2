"""The errors of a request, and their responses in OpenAI's form, without a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from torchrl_ckpt.plugin_api.errors import ModelError
from torchrl_ckpt.serving_api.protocol import ErrorDetail, ErrorResponse

_log = logging.getLogger(__name__)

_MAX_MESSAGE_LENGTH = 1000
_MAX_PARAM_LENGTH = 100

_RETRY_SECONDS = 1


class RequestError(HTTPException):
    """Base of the errors of a request, each with its status and OpenAI's `type` and `code`."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(
        self, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(self.status, message, headers)
        self.param = param


class BadRequest(RequestError):
    """The request is invalid."""


class WrongKey(RequestError):
    """The key is missing, or is not the server's."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(RequestError):
    """The weights are outside the allowed directories."""

    status = 403
    type = "permission_error"
    code = "directory_not_allowed"


class NotFound(RequestError):
    """The model or the directory does not exist."""

    status = 404
    code = "not_found"


class WrongHost(RequestError):
    """The request is for another host than this server."""

    status = 421
    code = "wrong_host"


class UnsupportedBody(RequestError):
    """The body is not JSON, as its type says."""

    status = 415
    code = "unsupported_media_type"


class TooLarge(RequestError):
    """The body exceeds the limit."""

    status = 413
    code = "request_too_large"


class TooManyRequests(RequestError):
    """The server has no room for this request now: the client may send it again soon."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": str(_RETRY_SECONDS)})


class ClientDisconnected(RequestError):
    """The client has disconnected. Nobody reads this response; the metrics count it."""

    status = 499


class SlowReader(RequestError):
    """The client reads a stream so slowly that it was cancelled."""

    status = 408
    code = "slow_reader"


class WeightsUnknown(RequestError):
    """A load failed half-way, so the engine's weights are not those of any policy."""

    status = 503
    type = "server_error"
    code = "weights_unknown"


class NotFinite(RequestError):
    """The engine computed a NaN or an infinity, which no JSON number can show."""

    status = 500
    type = "server_error"
    code = "not_finite"


class EngineDied(RequestError):
    """The engine has failed for good; the server exits within a second or two."""

    status = 500
    type = "server_error"
    code = "engine_died"


def install_error_handlers(app: FastAPI) -> None:
    """Respond to every exception of `app`'s routes in OpenAI's form."""
    for kind in (RequestError, ModelError, RequestValidationError, Exception):
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(HTTPException, _respond_to_framework_error)


def describe_error(error: BaseException) -> tuple[int, ErrorDetail]:
    """Return an error's status and what a client may see of it: nothing internal, and only a short
    quotation of what it has sent."""
    status, detail = _describe_error(error)
    return status, detail.model_copy(
        update={
            "message": _shortened(detail.message, _MAX_MESSAGE_LENGTH),
            "param": detail.param and _shortened(detail.param, _MAX_PARAM_LENGTH),
        }
    )


def error_response(error: Exception) -> JSONResponse:
    """Return the response to `error` in OpenAI's form."""
    status, detail = describe_error(error)
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status, headers)


def _describe_error(error: BaseException) -> tuple[int, ErrorDetail]:
    match error:
        case RequestError():
            return error.status, ErrorDetail(
                message=error.detail, type=error.type, param=error.param, code=error.code
            )
        case ModelError():
            return 400, _bad_request(str(error), param="directory", code="unusable_weights")
        case RequestValidationError():
            return 400, _validation_error(error)
        case _:
            return 500, ErrorDetail(
                message="the server failed on this request; see its log", type="server_error"
            )


def log_server_error(request: str, error: BaseException) -> None:
    """Log an error of the server's own (5xx) on `request`, such as `POST /weights`."""
    status, detail = describe_error(error)
    if status >= 500:
        cause = error.__cause__ if isinstance(error, RequestError) else error
        _log.error("%s: %s", request, detail.message, exc_info=cause)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    # Any other exception reaches uvicorn after the response, and uvicorn logs it.
    if isinstance(error, RequestError):
        log_server_error(f"{request.method} {request.url.path}", error)
    return error_response(error)


async def _respond_to_framework_error(request: Request, error: Exception) -> JSONResponse:
    """Respond to the framework's own errors: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    detail = _bad_request(f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status_code, error.headers)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _bad_request(message: str, param: str | None = None, code: str | None = None) -> ErrorDetail:
    return ErrorDetail(message=message, type="invalid_request_error", param=param, code=code)


def _validation_error(error: RequestValidationError) -> ErrorDetail:
    """Describe one of the request's mistakes: the innermost, since it belongs to the form (such as
    that of `prompt`) that fits best."""
    mistake = max(error.errors(), key=lambda mistake: len(mistake["loc"]))
    if mistake["type"] == "json_invalid":
        return _bad_request("the body is not JSON")
    param = next((str(part) for part in mistake["loc"][1:]), None)
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        message = "this parameter is not supported"
    return _bad_request(f"{param}: {message}" if param else message, param=param)
