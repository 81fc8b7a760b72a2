"""Speaks to an inference server: token ids and seeds there, samples and log-probabilities back."""

from __future__ import annotations

import asyncio
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
    ErrorAnswer,
    Health,
    LoadedWeights,
    LoadRequest,
)

Answer = TypeVar("Answer", bound=BaseModel)

_HEALTH_TIMEOUT_SECONDS = 30.0

# Each is an open file here and there, and a server works on far fewer at a time.
_MOST_COMPLETIONS = 256

# A server that says `Retry-After: 0` is not to be asked in a loop without a breath.
_SHORTEST_RETRY_SECONDS = 0.1

_WEIGHTS_UNKNOWN = "weights_unknown"


class ServerLost(ServerUnreachable):
    """The connection failed, or the server did not say that it is well. It may come back."""


class KeyRefused(ServerUnreachable):
    """The key is not the server's."""


class RequestFailed(ServerUnreachable):
    """The server failed on this request (5xx), for a reason of its own. Another may not."""


class ServerBusy(ServerUnreachable):
    """The server takes no more requests before `retry_after` seconds have passed."""

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
    """A server at `base_url`; `timeout` (seconds) bounds every wait for it but that for samples,
    and `health_timeout` that for a health check.

    Samples have no such bound, since a request waits for those before it: whoever asks watches the
    server's health meanwhile. Whatever is asked may be asked again: the same request to the same
    weights gives the same samples, and a load repeated is a load.

    Raises `ServerLost` where the connection fails; `KeyRefused`; `ServerBusy`; `RequestFailed`;
    `ServerUnreachable` for no answer in time or one that makes no sense; `DataError` for a request
    that the server cannot serve; `WrongPolicy` where it has no good weights.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None,
        timeout: float,
        health_timeout: float = _HEALTH_TIMEOUT_SECONDS,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
        self._health_timeout = health_timeout
        self._places = asyncio.Semaphore(_MOST_COMPLETIONS)
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # a proxy of the environment must not come between, least of all here
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
        """Return if the server is healthy. Raises `ServerLost` where it reports that it is not, or
        does not answer within `health_timeout` seconds."""
        limit = self._health_timeout
        try:
            async with asyncio.timeout(limit):
                await self._ask(Health, "GET", "/health", "its health", timeout=httpx.Timeout(None))
        except TimeoutError as error:
            raise ServerLost(
                f"{self.base_url} did not answer a health check within {limit:.0f} s"
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
            "completions",
            timeout=httpx.Timeout(self.timeout, read=None),
        )
        self._check_choices(completion, request)
        return completion

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> SequenceScores:
        """The log-probabilities of `sequences` at temperature 1."""
        completion = await self._request_completion(
            CompletionRequest(
                prompt=[list(sequence) for sequence in sequences],
                max_tokens=0,
                echo=True,
                logprobs=1,
            ),
            "log-probabilities",
            timeout=httpx.Timeout(self.timeout),
        )
        return SequenceScores(
            [choice.token_logprobs for choice in completion.choices], completion.weights_ids
        )

    async def load_weights(self, directory: Path, version: int) -> LoadedWeights:
        """Return once the server serves `directory` as policy `version`, with what it says then.

        Raises `WrongPolicy` where it could not load it.
        """
        body = LoadRequest(directory=str(directory.resolve()), version=version)
        try:
            return await self._ask(
                LoadedWeights, "POST", "/weights", f"policy {version} to load", body
            )
        except DataError as error:
            raise WrongPolicy(f"policy {version} cannot be served: {error}") from error

    async def loaded(self) -> LoadedWeights:
        """What the server serves."""
        return await self._ask(LoadedWeights, "GET", "/weights", "what is loaded")

    async def _request_completion(
        self, request: CompletionRequest, what: str, timeout: httpx.Timeout
    ) -> Completion:
        async with self._places:
            return await self._ask(
                Completion, "POST", "/v1/completions", what, request, timeout=timeout
            )

    async def _ask(
        self,
        form: type[Answer],
        method: str,
        path: str,
        what: str,
        body: BaseModel | None = None,
        *,
        timeout: httpx.Timeout | None = None,
    ) -> Answer:
        """The server's answer, if it is a good one. `what` says what was asked for."""
        content = body and body.model_dump(exclude_defaults=True)
        try:
            answer = await self._http.request(
                method, path, json=content, timeout=timeout or self.timeout
            )
        except httpx.TimeoutException as error:
            raise ServerUnreachable(
                f"{self.base_url} did not answer within {self.timeout:.0f} s; waited for {what}. "
                "See the server's log, or raise `orchestrator.client.timeout`"
            ) from error
        except httpx.TransportError as error:
            said = str(error) or type(error).__name__
            raise ServerLost(f"{self.base_url} was asked for {what}: {said}") from error
        try:
            if answer.status_code == httpx.codes.OK:
                return form.model_validate_json(answer.content)
            failure = ErrorAnswer.model_validate_json(answer.content).error
        except ValidationError as error:
            if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                # A proxy before the server, which has no connection to it.
                raise ServerLost(f"{self.base_url} answers with {answer.status_code}") from error
            raise ServerUnreachable(
                f"{self.base_url} answers to {path}, but not as an inference server of "
                f"torchrl-ckpt does (status {answer.status_code}). Has another program the port?"
            ) from error
        said = f"{self.base_url} was asked for {what}: {failure.message}"
        raise _refusal(answer, failure.code, said)

    def _check_choices(self, completion: Completion, request: GenerationRequest) -> None:
        """Raises `ServerUnreachable` where `completion` is not a complete answer to `request`."""
        num_expected = len(request.prompts) * request.num_samples
        if [choice.index for choice in completion.choices] != list(range(num_expected)):
            raise ServerUnreachable(
                f"{self.base_url} gave {len(completion.choices)} completions, or not in order, for "
                f"{len(request.prompts)} prompts with {request.num_samples} samples each. See the "
                "server's log"
            )
        for choice in completion.choices:
            num_tokens = len(choice.token_ids or [])
            num_logprobs = len(choice.token_logprobs)
            num_covered = sum(span.num_tokens for span in choice.policy)
            if choice.token_ids is None or not num_tokens == num_logprobs == num_covered:
                raise ServerUnreachable(
                    f"{self.base_url} gave a completion of {num_tokens} tokens with {num_logprobs} "
                    f"log-probabilities and policy spans over {num_covered} tokens. See the "
                    "server's log"
                )


def _refusal(answer: httpx.Response, code: str | None, said: str) -> UserError:
    """What an answer other than 200 means for the user; `code` is the server's word for it."""
    status = answer.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return KeyRefused(
            f"{said}. Its key is in the environment variable that `client.api_key_env` names or, "
            "for a server that the same user started by hand, in a file that is found by itself"
        )
    if status == httpx.codes.TOO_MANY_REQUESTS:
        wait = answer.headers.get("Retry-After", "")
        seconds = float(wait) if wait.isdecimal() else 1.0
        return ServerBusy(said, max(seconds, _SHORTEST_RETRY_SECONDS))
    if code == _WEIGHTS_UNKNOWN:
        return WrongPolicy(said)
    if status < httpx.codes.INTERNAL_SERVER_ERROR:
        return DataError(said)
    return RequestFailed(f"{said}. See the server's log")
