"""A client of the inference server: completions, log-probabilities, and loads of weights."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from torchrl_ckpt.plugin_api.engines import GenerationRequest
from torchrl_ckpt.plugin_api.errors import DataError, ServerUnreachable, UserError, WrongPolicy
from torchrl_ckpt.serving_api.protocol import (
    Completion,
    CompletionRequest,
    ErrorResponse,
    Health,
    LoadedWeights,
    LoadRequest,
)

Response = TypeVar("Response", bound=BaseModel)

_MAX_HEALTH_SECONDS = 30.0

# Each is an open file on both sides, and a server runs far fewer at a time.
_MAX_CONCURRENT_COMPLETIONS = 256

# Prevents a busy loop if a server sends `Retry-After: 0`.
_MIN_RETRY_SECONDS = 0.1

# The server's weights, or the numbers that it computes with them, are not those of the policy.
_WRONG_POLICY_CODES = ("weights_unknown", "not_finite")

# A probability may be rounded to a little more than 1.
_MAX_LOGPROB = 1e-3


class ServerLost(ServerUnreachable):
    """The connection failed, or the server is not healthy. It may come back."""


class KeyRefused(ServerUnreachable):
    """The server does not accept the key."""


class RequestFailed(ServerUnreachable):
    """The server failed on this request (5xx). Another server may not."""


class ServerBusy(ServerUnreachable):
    """The server accepts no more requests before `retry_after` seconds have passed."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class SequenceScores:
    """The log-probability of every token but the first of each sequence, and the ids of the weights
    that computed them (see `PolicySpan`)."""

    logprobs: list[list[float]]
    weights_ids: frozenset[str | None]


class InferenceClient:
    """A client of the server at `base_url`.

    `timeout` (seconds) bounds every wait but those for completions and for health. A health check
    has `health_timeout`; None is 30, or `timeout` if shorter. A request for completions may wait
    for those before it, so it has no bound; the caller checks the server's health in the meantime.
    Every request may be repeated: the same request to the same weights gives the same completions,
    and a repeated load gives the weights a new id.

    Token ids of completions must be below `vocabulary`, unless that is None.

    Every method raises `ServerLost` if the connection fails; `KeyRefused`; `ServerBusy`;
    `RequestFailed`; `ServerUnreachable` for a response that is late or invalid; `DataError` for a
    request that the server cannot serve; `WrongPolicy` if the server's weights are unknown.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None,
        timeout: float,
        health_timeout: float | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self.vocabulary: int | None = None
        self._health_timeout = health_timeout or min(timeout, _MAX_HEALTH_SECONDS)
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_COMPLETIONS)
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # a proxy of the environment must not see the key or the rollouts
        )

    async def __aenter__(self) -> InferenceClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def check_health(self) -> None:
        """Return if the server is healthy. Raises `ServerLost` if it reports that it is not, or
        does not answer within `health_timeout` seconds."""
        limit = self._health_timeout
        try:
            async with asyncio.timeout(limit):
                await self._request(
                    Health, "GET", "/health", "health check", timeout=httpx.Timeout(None)
                )
        except TimeoutError as error:
            raise ServerLost(
                f"{self.base_url} did not answer the health check within {limit:.0f} s"
            ) from error
        except (DataError, RequestFailed, WrongPolicy) as error:
            raise ServerLost(str(error)) from error

    async def complete(self, request: GenerationRequest) -> Completion:
        """Generate `num_samples` completions of each prompt: choices by prompt, then by sample.

        Every choice has `token_ids` and as many `token_logprobs`, and its policy spans cover them.
        """
        sampling = request.sampling
        completion = await self._request_completion(
            CompletionRequest(
                prompt=[list(prompt) for prompt in request.prompts],
                prompt_seeds=list(request.seeds),
                n=request.num_samples,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                stop_token_ids=list(sampling.stop_token_ids),
                logprobs=1,
                return_token_ids=True,
            ),
            "request for completions",
            timeout=httpx.Timeout(self.timeout, read=None),
        )
        self._check_choices(completion, request)
        return completion

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> SequenceScores:
        """Compute the log-probabilities of `sequences` at temperature 1."""
        completion = await self._request_completion(
            CompletionRequest(
                prompt=[list(sequence) for sequence in sequences],
                max_tokens=0,
                echo=True,
                logprobs=1,
            ),
            "request for log-probabilities",
            timeout=httpx.Timeout(self.timeout),
        )
        for choice in completion.choices:
            # The first token of an echoed prompt has none.
            self._check_logprobs(choice.logprobs.token_logprobs[1:] if choice.logprobs else [])
        return SequenceScores(
            [choice.token_logprobs for choice in completion.choices], completion.weights_ids
        )

    async def load_weights(self, directory: Path, version: int) -> LoadedWeights:
        """Have the server load `directory` as policy `version`; return what it reports then.

        Raises `WrongPolicy` if the server cannot load it.
        """
        body = LoadRequest(directory=str(directory.resolve()), version=version)
        try:
            return await self._request(
                LoadedWeights, "POST", "/weights", f"load of policy {version}", body
            )
        except DataError as error:
            raise WrongPolicy(str(error)) from error

    async def loaded(self) -> LoadedWeights:
        """Return the weights that the server reports."""
        return await self._request(LoadedWeights, "GET", "/weights", "request for the weights")

    async def _request_completion(
        self, request: CompletionRequest, action: str, timeout: httpx.Timeout
    ) -> Completion:
        async with self._slots:
            return await self._request(
                Completion, "POST", "/v1/completions", action, request, timeout=timeout
            )

    async def _request(
        self,
        response_type: type[Response],
        method: str,
        path: str,
        action: str,
        body: BaseModel | None = None,
        *,
        timeout: httpx.Timeout | None = None,
    ) -> Response:
        """Send a request and parse its response. `action` names the request in errors."""
        content = body and body.model_dump(exclude_defaults=True)
        try:
            response = await self._http.request(
                method, path, json=content, timeout=timeout or self.timeout
            )
        except httpx.TimeoutException as error:
            raise ServerUnreachable(
                f"{self.base_url} did not answer the {action} within {self.timeout:.0f} s. See the "
                "server's log, or raise `orchestrator.client.timeout`"
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerLost(f"the {action} at {self.base_url} failed: {reason}") from error
        try:
            if response.status_code == httpx.codes.OK:
                return response_type.model_validate_json(response.content)
            detail = ErrorResponse.model_validate_json(response.content).error
        except ValidationError as error:
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                # The status of a proxy that has no connection to the server.
                raise ServerLost(
                    f"{self.base_url} answers with status {response.status_code}"
                ) from error
            raise ServerUnreachable(
                f"{self.base_url} answers to {path}, but not like an inference server of "
                f"torchrl-ckpt (status {response.status_code}). Another program may be using the "
                "port"
            ) from error
        message = f"the {action} at {self.base_url} failed: {detail.message}"
        raise _error_of(response, detail.code, message)

    def _check_choices(self, completion: Completion, request: GenerationRequest) -> None:
        """Raise `ServerUnreachable` if `completion` does not match `request`."""
        num_expected = len(request.prompts) * request.num_samples
        if [choice.index for choice in completion.choices] != list(range(num_expected)):
            raise ServerUnreachable(
                f"{self.base_url} sent {len(completion.choices)} completions, or not in order, for "
                f"{len(request.prompts)} prompts with {request.num_samples} samples each. See the "
                "server's log"
            )
        for choice in completion.choices:
            self._check_logprobs(choice.logprobs.token_logprobs if choice.logprobs else [])
            self._check_tokens(choice.token_ids or [], request.sampling.max_tokens)
            num_tokens = len(choice.token_ids or [])
            num_logprobs = len(choice.token_logprobs)
            num_covered = sum(span.num_tokens for span in choice.policy)
            if choice.token_ids is None or not num_tokens == num_logprobs == num_covered:
                raise ServerUnreachable(
                    f"{self.base_url} sent a completion of {num_tokens} tokens with {num_logprobs} "
                    f"log-probabilities and policy spans over {num_covered} tokens. See the "
                    "server's log"
                )

    def _check_logprobs(self, values: Sequence[float | None]) -> None:
        """Raise `ServerUnreachable` unless every value is the logarithm of a probability."""
        for position, value in enumerate(values):
            if value is None or not -math.inf < value <= _MAX_LOGPROB:  # neither holds for a NaN
                shown = "null" if value is None else value
                raise ServerUnreachable(
                    f"{self.base_url} sent `token_logprobs` with {shown} at position {position}, "
                    "which is not the logarithm of a probability. See the server's log"
                )

    def _check_tokens(self, token_ids: Sequence[int], max_tokens: int) -> None:
        """Raise `ServerUnreachable` for more tokens than requested, none, or one that the
        vocabulary lacks."""
        if not 1 <= len(token_ids) <= max_tokens:
            raise ServerUnreachable(
                f"{self.base_url} sent a completion of {len(token_ids)} tokens in `token_ids`; 1 "
                f"to {max_tokens} were requested. See the server's log"
            )
        limit = math.inf if self.vocabulary is None else self.vocabulary
        wrong = next((token for token in token_ids if not 0 <= token < limit), None)
        if wrong is not None:
            raise ServerUnreachable(
                f"{self.base_url} sent the token id {wrong} in `token_ids`, which is not in "
                f"0..{limit - 1}. See the server's log"
            )


def _error_of(response: httpx.Response, code: str | None, message: str) -> UserError:
    """Return the exception for a response other than 200; `code` is that of its error."""
    status = response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return KeyRefused(
            f"{message}. Set the key in the environment variable that `client.api_key_env` names; "
            "the key of a server that the same user started by hand is found without it"
        )
    if status == httpx.codes.TOO_MANY_REQUESTS:
        retry_after = response.headers.get("Retry-After", "")
        seconds = float(retry_after) if retry_after.isdecimal() else 1.0
        return ServerBusy(message, max(seconds, _MIN_RETRY_SECONDS))
    if code in _WRONG_POLICY_CODES:
        return WrongPolicy(message)
    if status < httpx.codes.INTERNAL_SERVER_ERROR:
        return DataError(message)
    return RequestFailed(f"{message}. See the server's log")
