"""Speaks to an inference server: token ids and seeds there, samples and log-probabilities back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from torchrl_ckpt.contracts import Generation, Sample
from torchrl_ckpt.errors import DataError, ServerUnreachable, UserError, WrongPolicy
from torchrl_ckpt.exchange.completions import (
    Choice,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Health,
    LoadedWeights,
    LoadRequest,
)

Answer = TypeVar("Answer", bound=BaseModel)

_RETRY_SECONDS = 0.1


class InferenceClient:
    """A server at `base_url`; `timeout` (seconds) bounds every wait for it.

    Whatever is asked may be asked again: the same request gives the same samples, and a load
    repeated is a load. So a lost connection is tried again until the time is up. After a restart
    the server's policy version is None, which the caller sees in what it gets.

    Raises `ServerUnreachable` where there is no server, no answer in time, or the key is refused;
    `DataError` for a request that the server cannot serve; `WrongPolicy` where it has no good
    weights.
    """

    def __init__(self, base_url: str, *, key: str | None, timeout: float) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout
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
        await self._http.aclose()

    async def wait_until_up(self) -> None:
        """Return once the server answers. That takes no key, and its key is there from then on."""
        await self._ask(Health, "GET", "/health", "the server to come up")

    async def generate(self, request: Generation) -> tuple[list[list[Sample]], int | None]:
        """Samples `[prompt][sample]`, and the version of the policy that they are of."""
        sampling = request.sampling
        completion = await self._complete(
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
        )
        samples = [_sample(choice) for choice in completion.choices]
        grouped = [
            samples[start : start + request.num_samples]
            for start in range(0, len(samples), request.num_samples)
        ]
        return grouped, completion.choices[0].policy_version

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence, the log-probability of every token but the first, at temperature 1."""
        completion = await self._complete(
            CompletionRequest(
                prompt=[list(sequence) for sequence in sequences],
                max_tokens=0,
                echo=True,
                logprobs=1,
            ),
            "log-probabilities",
        )
        return [_token_logprobs(choice)[1:] for choice in completion.choices]

    async def load_weights(self, directory: Path, version: int) -> None:
        """Return once the server serves `directory` as policy `version`.

        Raises `WrongPolicy` where it could not load it.
        """
        body = LoadRequest(directory=str(directory.resolve()), version=version)
        try:
            await self._ask(LoadedWeights, "POST", "/weights", f"policy {version} to load", body)
        except DataError as error:
            raise WrongPolicy(f"policy {version} cannot be served: {error}") from error

    async def loaded(self) -> LoadedWeights:
        """What the server serves."""
        return await self._ask(LoadedWeights, "GET", "/weights", "what is loaded")

    async def _complete(self, request: CompletionRequest, what: str) -> Completion:
        return await self._ask(Completion, "POST", "/v1/completions", what, request)

    async def _ask(
        self, form: type[Answer], method: str, path: str, what: str, body: BaseModel | None = None
    ) -> Answer:
        """The server's answer, if it is a good one. `what` says what is waited for."""
        answer = await self._request(method, path, what, body)
        try:
            if answer.status_code == httpx.codes.OK:
                return form.model_validate_json(answer.content)
            message = ErrorAnswer.model_validate_json(answer.content).error.message
        except ValidationError as error:
            raise ServerUnreachable(
                f"{self.base_url} answers to {path}, but not as an inference server of "
                f"torchrl-ckpt does (status {answer.status_code}). Has another program the port?"
            ) from error
        raise _refusal(answer.status_code, f"{self.base_url} was asked for {what}: {message}")

    async def _request(
        self, method: str, path: str, what: str, body: BaseModel | None
    ) -> httpx.Response:
        deadline = time.monotonic() + self.timeout
        content = body and body.model_dump(exclude_defaults=True)
        while True:
            try:
                return await self._http.request(method, path, json=content)
            except httpx.TimeoutException as error:
                raise ServerUnreachable(
                    f"{self.base_url} did not answer within {self.timeout:.0f} s; waited for "
                    f"{what}. See the server's log, or raise `orchestrator.client.timeout`"
                ) from error
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                if time.monotonic() > deadline:
                    raise ServerUnreachable(
                        f"no inference server at {self.base_url} for {self.timeout:.0f} s; waited "
                        f"for {what} ({error}). Start one with `inference @ RECIPE`, give the job "
                        "an `[inference]` section, or set `orchestrator.client.base_url`"
                    ) from error
                await asyncio.sleep(_RETRY_SECONDS)


def _refusal(status: int, said: str) -> UserError:
    """What an answer other than 200 means for the user."""
    if status == httpx.codes.UNAUTHORIZED:
        return ServerUnreachable(
            f"{said}. Its key is in the environment variable that `client.api_key_env` names or, "
            "for a server that the same user started by hand, in a file that is found by itself"
        )
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return WrongPolicy(said)
    if status < httpx.codes.INTERNAL_SERVER_ERROR:
        return DataError(said)
    return ServerUnreachable(f"{said}. See the server's log")


def _sample(choice: Choice) -> Sample:
    return Sample(choice.token_ids or [], _token_logprobs(choice), choice.finish_reason)


def _token_logprobs(choice: Choice) -> list[float]:
    return choice.logprobs.token_logprobs if choice.logprobs else []  # type: ignore[return-value]
