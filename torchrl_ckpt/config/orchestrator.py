"""`[orchestrator]`, and the sections `sampling`, `evaluation` and `client` below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.launcher import LauncherConfig
from torchrl_ckpt.config.section import (
    Count,
    EnvironmentTable,
    ModelTable,
    PositiveInt,
    Seconds,
    Section,
    VariableName,
)


class SamplingConfig(Section):
    """How completions are sampled."""

    max_tokens: PositiveInt = 16
    """The largest number of tokens of a completion."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """The sampling temperature. 0: the most likely token each time."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens whose probabilities add up to at least this."""

    top_k: Count = 0
    """Sample from this many of the most likely tokens. 0: from all."""


class EvaluationConfig(Section):
    """Evaluation of the policy on the environment's held-out problems."""

    num_problems: PositiveInt | None = None
    """The number of problems. Unset: all; an environment without end needs a number."""

    samples_per_problem: PositiveInt = 4
    """Completions per problem."""

    interval: PositiveInt | None = None
    """Also evaluate every this many steps, not only before the first and after the last."""

    sampling: SamplingConfig | None = None
    """How completions are sampled here. Off: as in training."""


class ClientConfig(Section):
    """How to reach the inference server."""

    base_url: str | None = None
    """The server's address. Without this and `base_urls`: http://127.0.0.1:8000. A job with an
    `[inference]` section uses the address of its own server."""

    base_urls: list[str] = []
    """The addresses of several servers, instead of `base_url`. A request goes to the server with
    the fewest requests in flight; a server that dies is left out until it is back."""

    api_key_env: VariableName = "TORCHRL_CKPT_API_KEY"
    """The environment variable with the API key of all servers. If it is not set, the key that each
    server started by hand has stored for this user is used. Only the command line may name one that
    does not begin with `TORCHRL_CKPT_`."""

    timeout: Seconds = 600.0
    """How long to wait for an answer, or for any server to be reachable, in seconds."""

    canary_tolerance: Annotated[float, Field(gt=0)] | None = None
    """How far an engine's log-probabilities of known sequences may differ from the trainer's, in
    nats. Unset: 1e-4 for float32, 0.2 if engine or trainer compute in 16 bits."""

    prompts_per_request: PositiveInt = 128
    """Prompts per request. They form the engine's batch, so results depend on this number, but
    never on timing or on which server answers. Several servers share the prompts of a step only
    if they make more than one request."""

    @model_validator(mode="after")
    def _one_form(self) -> ClientConfig:
        if self.base_url is not None and self.base_urls:
            raise ValueError("give either `base_url` or `base_urls`, not both")
        if len(set(self.base_urls)) < len(self.base_urls):
            raise ValueError("`base_urls` names a server twice")
        for url in self.servers:
            _check_address(url)
        return self

    @property
    def servers(self) -> list[str]:
        """The address of every server."""
        return self.base_urls or [self.base_url or "http://127.0.0.1:8000"]


def _check_address(url: str) -> None:
    """Raise `ValueError` for an address that is refused, without it: it may hold a password."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError("a server's address must begin with http:// or https:// and name a host")
    if "@" in address.netloc:
        raise ValueError(
            "a server's address must not hold a password; `api_key_env` names the variable with "
            "the key"
        )


class OrchestratorConfig(Section):
    """The process that turns problems into batches of scored rollouts."""

    max_steps: PositiveInt = 40
    """The last step, as the trainer's."""

    seed: Count = 0
    """The seed of everything random in this process."""

    output_dir: Path
    """The run's directory, as the trainer's."""

    model: ModelTable
    """The model whose tokenizer to use."""

    launcher: LauncherConfig = LauncherConfig()
    """How the processes are watched."""

    ckpt: CheckpointConfig | None = None
    """Checkpointing, as the trainer's."""

    environment: EnvironmentTable
    """The environment, which poses the problems and scores the completions."""

    prompts_per_step: PositiveInt = 128
    """Problems per step."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Completions per problem: the group whose mean reward is the baseline."""

    async_level: Count = 1
    """Step n trains on rollouts of the policy of step max(0, n - 1 - async_level). 0 is on-policy;
    with 1, the next batch is generated while the trainer works on this one."""

    advantage: Literal["centred", "normalised"] = "centred"
    """`centred`: the reward minus the group's mean; `normalised`: that divided by the group's
    standard deviation."""

    sampling: SamplingConfig = SamplingConfig()
    """How completions are sampled."""

    evaluation: EvaluationConfig | None = EvaluationConfig()
    """Held-out evaluation before the first and after the last step."""

    client: ClientConfig = ClientConfig()
    """The inference server."""

    policy_timeout: Seconds = 1800.0
    """How long to wait for the trainer to publish a policy, in seconds."""

    publish_timeout: Seconds = 600.0
    """How long to try again to write a batch of rollouts while the disk refuses it, because it is
    full or failing, in seconds."""
