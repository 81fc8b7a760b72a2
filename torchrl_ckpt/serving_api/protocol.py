"""Requests and responses over HTTP: OpenAI's completions, and the loading of weights.

Extensions to OpenAI's form: `prompt_seeds` and `return_token_ids` in a request, and in each choice
`token_ids`, `prompt_token_ids` and `policy`, the weights that drew each span of tokens. An
unsupported parameter is refused, never ignored. Parameters that OpenAI's clients commonly send are
accepted with the value that changes nothing; null is accepted everywhere and means the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

# A request gets one error, however many mistakes its lists have.
_First = Field(fail_fast=True)

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], _First]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Zero = Annotated[float, Field(ge=0, le=0)]
FinishReason = Literal["stop", "length"]


class StreamOptions(BaseModel):
    """With `include_usage`, a stream ends with the number of tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Request(BaseModel):
    """The parameters that completions and chat share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=4096)] = 1
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=16)
    ] = []
    stop_token_ids: TokenIds = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    return_token_ids: bool = False
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] = {}
    store: Literal[False] = False

    @property
    def include_usage(self) -> bool:
        """Whether a stream must end with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> Any:
        """Turn null into the default, and a single stop sequence into a list."""
        if not isinstance(value, Mapping):
            return value
        given = {name: field for name, field in value.items() if field is not None}
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        return given

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if 0 < self.temperature < 1e-4:
            # Logits divided by less exceed the range of float32.
            raise ValueError("`temperature` must be 0 or at least 0.0001")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` is supported with `stream` only")
        return self


class CompletionRequest(_Request):
    """`POST /v1/completions`. `prompt` is a text, a list of token ids, or a list of either.

    `prompt_seeds` gives each prompt its seed: sample j of a prompt is a function of the weights,
    the prompt, its seed and j. With `echo` and `max_tokens` 0 the response is the prompt itself
    and, with `logprobs`, the log-probability of each of its tokens but the first.
    """

    prompt: str | TokenIds | Annotated[list[str], _First] | Annotated[list[TokenIds], _First]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    echo: bool = False
    prompt_seeds: Annotated[list[Seed], _First] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> CompletionRequest:
        if self.echo != (self.max_tokens == 0):
            raise ValueError("`echo` and `max_tokens = 0` are supported together only")
        if self.prompt_seeds is not None and len(self.prompt_seeds) != len(self.prompts):
            raise ValueError("`prompt_seeds` must have one seed for each prompt")
        if not self.prompts:
            raise ValueError("`prompt` is empty")
        if self.echo and self.stream:
            raise ValueError("`echo` cannot be streamed")
        if self.best_of not in (None, self.n):
            raise ValueError("`best_of` other than `n` is not supported")
        return self

    @property
    def prompts(self) -> list[str] | list[TokenIds]:
        """The prompts as a list, even of one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


class TextFormat(BaseModel):
    """The only supported `response_format`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]


class ChatCompletionRequest(_Request):
    """`POST /v1/chat/completions`. `max_completion_tokens` is the newer name of `max_tokens`."""

    messages: Annotated[list[Mapping[str, Any]], Field(min_length=1), _First]
    max_tokens: Annotated[
        int, Field(ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))
    ] = 16
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=0)] = 0
    tools: Annotated[list[Any], Field(max_length=0)] = []
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = True
    response_format: TextFormat | None = None


class PolicySpan(BaseModel):
    """`num_tokens` consecutive tokens of a completion, all drawn by the same weights.

    `version` is the number given with `POST /weights`. `weights_id` is unique to that load, on this
    and every other server: a client that has checked an id can trust all tokens with that id, even
    if other clients load weights too. Both are None for the weights that a server started with.
    """

    version: int | None
    weights_id: str | None
    num_tokens: int


class Logprobs(BaseModel):
    """Parallel lists with one entry per token; the first token of an echoed prompt has no
    log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: None = None
    text_offset: list[int]


class ChoiceChunk(BaseModel):
    """What a stream adds to one completion; only the last chunk has a `finish_reason`."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    policy: list[PolicySpan]


class Choice(ChoiceChunk):
    """One completion."""

    finish_reason: FinishReason

    @property
    def token_logprobs(self) -> list[float]:
        """The log-probability of each token; of an echoed prompt, of each but the first.

        Empty unless the request has `logprobs`.
        """
        if self.logprobs is None:
            return []
        return [value for value in self.logprobs.token_logprobs if value is not None]


class Usage(BaseModel):
    """Numbers of tokens; a prompt counts once, however many samples it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """The response to a `CompletionRequest`: choices by prompt, then by sample."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage

    @property
    def weights_ids(self) -> frozenset[str | None]:
        """The ids of all weights that drew any of its tokens (see `PolicySpan`)."""
        return frozenset(span.weights_id for choice in self.choices for span in choice.policy)


class CompletionChunk(BaseModel):
    """An event of a streamed `Completion`. With `include_usage`, a last event has `usage` and no
    choices."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[ChoiceChunk]
    usage: Usage | None = None


class ChatMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatTokenLogprob(BaseModel):
    """One token of the assistant's turn."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChatLogprobs(BaseModel):
    """The tokens of the assistant's turn."""

    content: list[ChatTokenLogprob]


class ChatChoice(BaseModel):
    """One alternative for the assistant's turn."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    policy: list[PolicySpan]


class ChatDelta(BaseModel):
    """What a stream adds to the assistant's turn; the first chunk has only the role."""

    role: Literal["assistant"] | None = None
    content: str


class ChatChoiceChunk(BaseModel):
    """What a stream adds to one choice; only the last chunk has a `finish_reason`."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    policy: list[PolicySpan]


class ChatCompletionChunk(BaseModel):
    """An event of a streamed `ChatCompletion`; see `CompletionChunk`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChoiceChunk]
    usage: Usage | None = None


class ChatCompletion(BaseModel):
    """The response to a `ChatCompletionRequest`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Health(BaseModel):
    """The response to `GET /health` of a healthy server."""

    status: Literal["ok"] = "ok"


class LoadRequest(BaseModel):
    """`POST /weights`: serve the Hugging Face directory `directory` as policy `version`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: str
    version: Annotated[int, Field(ge=0)]


class LoadedWeights(BaseModel):
    """The weights in use. `version`, `weights_id` (see `PolicySpan`) and `directory` are None for
    the weights that the server started with, and after a load that failed half-way.

    `digest` is computed by the engine from the weights in use, and `dtype` is what it computes in,
    such as `float32`; each is None if the engine cannot provide it.
    """

    version: int | None
    weights_id: str | None
    directory: str | None
    digest: str | None
    dtype: str | None = None


class ServedModel(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "torchrl-ckpt"


class ServedModels(BaseModel):
    """The response to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class ErrorDetail(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every response with a status other than 200."""

    error: ErrorDetail
