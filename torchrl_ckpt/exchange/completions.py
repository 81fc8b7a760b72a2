"""What is said over HTTP: OpenAI's completions, with token ids, and the weights that make them.

Extensions to OpenAI's form: `prompt_seeds` and `return_token_ids` in a request, and in each choice
`token_ids`, `prompt_token_ids` and `policy`, the weights that generated it, token span by span.
A parameter that is not supported is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TokenIds = list[Annotated[int, Field(ge=0)]]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
FinishReason = Literal["stop", "length"]


class _Request(BaseModel):
    """What completions and chat have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=4096)] = 1
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: Seed | None = None
    stop_token_ids: TokenIds = []
    stream: Literal[False] = False
    user: str | None = None
    return_token_ids: bool = False


class CompletionRequest(_Request):
    """`POST /v1/completions`. `prompt` is a text or token ids, or a list of either.

    `prompt_seeds` gives each prompt its seed: sample j of a prompt is a function of the weights,
    the prompt, its seed and j. With `echo` and `max_tokens` 0 the answer is the prompt itself and,
    with `logprobs`, the log-probability of each of its tokens but the first.
    """

    prompt: str | TokenIds | list[str] | list[TokenIds]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    echo: bool = False
    prompt_seeds: list[Seed] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.echo != (self.max_tokens == 0):
            raise ValueError("`echo` and `max_tokens = 0` are supported together only")
        if self.prompt_seeds is not None and len(self.prompt_seeds) != len(self.prompts):
            raise ValueError("`prompt_seeds` must have one seed for each prompt")
        if not self.prompts:
            raise ValueError("`prompt` is empty")
        return self

    @property
    def prompts(self) -> list[str] | list[TokenIds]:
        """The prompts, also where there is only one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


class ChatCompletionRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Mapping[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: bool = False


class PolicySpan(BaseModel):
    """`num_tokens` tokens in a row of a completion, all drawn by the same weights.

    `version` is what the load called them, and `load` names that load itself, unlike any other on
    any server: who has checked it knows these tokens, whoever else sends weights to the server.
    Both are None for the weights that a server started with.
    """

    version: int | None
    load: str | None
    num_tokens: int


class Logprobs(BaseModel):
    """Parallel lists, a token each; the first token of an echoed prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: None = None
    text_offset: list[int]


class Choice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    policy: list[PolicySpan]


class Usage(BaseModel):
    """Tokens read and written; a prompt counts once, however many samples it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """The answer to a `CompletionRequest`: choices by prompt, then by sample."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ChatMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatTokenLogprob(BaseModel):
    """A token of the assistant's turn."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class ChatLogprobs(BaseModel):
    """The tokens of the assistant's turn."""

    content: list[ChatTokenLogprob]


class ChatChoice(BaseModel):
    """One answer of the assistant."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    policy: list[PolicySpan]


class ChatCompletion(BaseModel):
    """The answer to a `ChatCompletionRequest`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Health(BaseModel):
    """`GET /health`: the server is up and answers."""

    status: Literal["ok"] = "ok"


class LoadRequest(BaseModel):
    """`POST /weights`: serve the Hugging Face directory `directory` as policy `version`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: str
    version: Annotated[int, Field(ge=0)]


class LoadedWeights(BaseModel):
    """What is served. `version` is None for weights that nobody sent, and after a failed load.

    `load` names the load that brought them, unlike any other on any server (`PolicySpan`).
    `digest` is the engine's own of the weights in use, or None where it cannot tell.
    """

    version: int | None
    load: str | None
    directory: str | None
    digest: str | None


class ServedModel(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "torchrl-ckpt"


class ServedModels(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class Failure(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not 200."""

    error: Failure
