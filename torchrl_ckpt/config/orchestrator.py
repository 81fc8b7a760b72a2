"""`[orchestrator]`, and the sections `sampling`, `evaluation` and `client` below it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.config.section import (
    Count,
    EnvironmentTable,
    ModelTable,
    PositiveInt,
    Seconds,
    Section,
)


class SamplingConfig(Section):
    """How completions are drawn."""

    max_tokens: PositiveInt = 16
    """Tokens a completion at most."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 is greedy."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens whose probabilities add up to this."""

    top_k: Count = 0
    """Draw from the likeliest so many tokens. 0: from all."""


class EvaluationConfig(Section):
    """Score the policy on the environment's held-out problems."""

    num_problems: PositiveInt | None = None
    """How many of them. Unset: all, which an environment without end does not allow."""

    samples_per_problem: PositiveInt = 4
    """Completions of each."""

    interval: PositiveInt | None = None
    """Every this many steps, besides before the first and after the last."""

    sampling: SamplingConfig | None = None
    """Unset: as in training."""


class ClientConfig(Section):
    """How the inference server is reached."""

    base_url: str | None = None
    """The server's address. Unset, and without `base_urls`: http://127.0.0.1:8000. A job with an
    `[inference]` section fills in that of its own."""

    base_urls: list[str] = []
    """The addresses of several servers, instead of `base_url`. A request goes to the one with the
    fewest under way; one that dies is left out until it is back."""

    api_key_env: str = "TORCHRL_CKPT_API_KEY"
    """The environment variable with the key, the same for all servers. Where it is not set, the key
    that each server started by hand left for this user is taken."""

    timeout: Seconds = 600.0
    """How long to wait for an answer, or for any server to be there, in seconds."""

    canary_tolerance: Annotated[float, Field(gt=0)] | None = None
    """How far an engine's log-probabilities of known sequences may lie from the trainer's, in nats.
    Unset: 1e-4 for float32, 0.2 where engine or trainer compute in 16 bits."""

    prompts_per_request: PositiveInt = 128
    """Prompts of one request. They form the engine's batch, so results depend on this number and
    never on timing or on which server answers. Several servers share a step's prompts only where
    they make several requests."""

    @model_validator(mode="after")
    def _one_form(self) -> ClientConfig:
        if self.base_url is not None and self.base_urls:
            raise ValueError("give either `base_url` or `base_urls`, not both")
        if len(set(self.base_urls)) < len(self.base_urls):
            raise ValueError("`base_urls` names a server twice")
        return self

    @property
    def servers(self) -> list[str]:
        """The address of every server."""
        return self.base_urls or [self.base_url or "http://127.0.0.1:8000"]


class OrchestratorConfig(Section):
    """The process that turns problems into batches of scored rollouts."""

    max_steps: PositiveInt = 40
    """The last step, as the trainer's."""

    seed: Count = 0
    """Everything random is drawn from this."""

    output_dir: Path
    """The run's directory, as the trainer's."""

    attempt: Count = 0
    """Which start of this run it is, as the trainer's."""

    model: ModelTable
    """The model whose tokenizer is used."""

    ckpt: CheckpointConfig | None = None
    """CheckpointConfig, as the trainer's."""

    environment: EnvironmentTable
    """Where problems come from and who scores them."""

    prompts_per_step: PositiveInt = 128
    """Problems a step."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Completions of each problem: the group whose mean reward is the baseline."""

    async_level: Count = 1
    """Step n trains on what the policy of step max(0, n - 1 - async_level) generated. 0 is
    on-policy; 1 generates the next batch while the trainer works on this one."""

    advantage: Literal["centred", "normalised"] = "centred"
    """Reward less the group's mean, or that divided by the group's standard deviation as well."""

    sampling: SamplingConfig = SamplingConfig()
    """How completions are drawn."""

    evaluation: EvaluationConfig | None = EvaluationConfig()
    """Held-out evaluation before the first and after the last step."""

    client: ClientConfig = ClientConfig()
    """The inference server."""

    policy_timeout: Seconds = 1800.0
    """How long to wait for the trainer to publish a policy, in seconds."""
