"""Every option of a recipe, documented where it is declared.

A section that may be off is `Section | None`. A table that names a plugin is a `PluginTable` whose
annotation says which kind. A relative `Path` is relative to the file that gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from torchrl_ckpt.contracts import Kind

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class PluginKind:
    """Says of a `PluginTable` which kind of plugin its `type` names."""

    kind: Kind


class PluginTable(BaseModel):
    """A plugin by name, with its own options beside `type`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        """`loss = "grpo"` is short for `loss.type = "grpo"`."""
        return {"type": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own keys."""
        return dict(self.model_extra or {})


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, docstrings below the fields are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


ModelTable = Annotated[PluginTable, PluginKind("models")]
LossTable = Annotated[PluginTable, PluginKind("losses")]
BackendTable = Annotated[PluginTable, PluginKind("checkpoint_backends")]
EnvironmentTable = Annotated[PluginTable, PluginKind("environments")]
EngineTable = Annotated[PluginTable, PluginKind("engines")]


class KeepBest(Section):
    """Keep the checkpoints of the steps at which a metric was best."""

    metric: str = "loss"
    """The metric's name in `metrics.jsonl`, such as `loss` or `reward/mean`."""

    component: str = "trainer"
    """Whose metric it is: `trainer`, `orchestrator` or `evaluation`."""

    direction: Literal["min", "max"] = "min"
    """Which is better: the smallest or the largest."""

    count: PositiveInt = 1
    """How many of the best to keep."""


class Checkpointing(Section):
    """When to checkpoint, where, and what to keep. Off unless asked for, to save disk space."""

    interval: PositiveInt | None = None
    """Save every this many steps. Unset: only the last step is saved."""

    keep: PositiveInt | None = None
    """How many of the newest checkpoints to keep. Unset: all."""

    keep_every: PositiveInt | None = None
    """Keep every checkpoint whose step is a multiple of this as well, however old."""

    keep_best: KeepBest | None = None
    """Keep the steps at which a metric was best as well, however old."""

    resume_step: PositiveInt | Literal["latest"] | None = None
    """Go on from this step's checkpoint, or from the `latest` good one."""

    resume_from: Path | None = None
    """Take the checkpoint from this other run and go on in a directory of one's own (a fork)."""

    on_failure: Literal["continue", "stop"] = "continue"
    """What a save that fails (a full disk, say) does to the run. Earlier checkpoints stay whole
    either way; `continue` tries again at the next interval."""

    save_async: bool = False
    """Write checkpoints while training goes on: the backend `async_dcp` in place of `dcp`."""

    directory: str = "checkpoints"
    """Where the step directories live, below `output_dir` unless absolute."""

    backend: BackendTable = PluginTable(type="dcp")
    """What puts the trainer's tensors into files."""

    timeout: Seconds = 3600.0
    """How long to wait for the other process's part of a checkpoint, in seconds. The orchestrator
    first generates the batches that the checkpoint carries."""

    @model_validator(mode="after")
    def _saved_async(self) -> Checkpointing:
        if self.save_async and self.backend.type == "dcp":
            # Every option of `dcp` is one of `async_dcp`, too.
            backend = self.backend.model_copy(update={"type": "async_dcp"})
            object.__setattr__(self, "backend", backend)
        elif self.save_async and self.backend.type != "async_dcp":
            raise ValueError(
                f"`save_async` stands for the backend async_dcp, but `backend` is "
                f"{self.backend.type}; leave one of them out"
            )
        return self


class Optimizer(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 3e-4
    """The learning rate that the schedule scales."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the running means of the gradient and of its square."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""

    max_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are clipped to this global norm. Off: `--no-optim.max-norm`."""


class Scheduler(Section):
    """The learning rate's course: a linear warmup, then what `name` says."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warmup."""

    warmup_steps: Count = 0
    """Steps over which the rate rises linearly to its full value."""

    decay_steps: PositiveInt | None = None
    """The step at which the decay ends. Unset: `max_steps`, and then a run that is resumed with
    another `max_steps` follows another schedule than one that was not."""

    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The rate at the end of the decay, as a share of the full one."""


class Packing(Section):
    """How samples are laid into the rows of a forward pass."""

    length: PositiveInt = 128
    """Tokens a row. Samples are packed into rows whole; attention never crosses between them."""

    rows: PositiveInt = 64
    """Rows a forward pass at most. More are done one after the other, accumulating gradients."""


class SftData(Section):
    """What supervised fine-tuning learns: JSON Lines files, or the problems of an environment."""

    files: list[Path] = []
    """JSON Lines files, one sample a line: `{"prompt": ..., "completion": ...}` or
    `{"messages": [...]}`. The loss is on the completion, or on the assistant's turns."""

    environment: EnvironmentTable | None = None
    """Learn the answers of this environment's training problems instead."""

    batch_size: PositiveInt = 512
    """Samples a step, over all ranks."""

    num_workers: Count = 0
    """Processes that tokenize beside the trainer, for each rank."""

    @model_validator(mode="after")
    def _one_source(self) -> SftData:
        if bool(self.files) == (self.environment is not None):
            raise ValueError("give either `files` or `environment`, not both and not neither")
        return self


class Trainer(Section):
    """The training process, whatever feeds it."""

    max_steps: PositiveInt = 40
    """The last step. A resumed run counts on from the checkpoint's step."""

    seed: Count = 0
    """Everything random is drawn from this."""

    output_dir: Path
    """The run's directory. Unset: `outputs/` and the name of the recipe, below the working
    directory."""

    attempt: Count = 0
    """Which start of this run it is. The runner counts; who starts trainer and orchestrator by
    hand gives both the same new number, so that neither takes files of an earlier start."""

    model: ModelTable
    """The model that is trained."""

    ranks: PositiveInt = 1
    """Processes on this machine, each with a shard of the model (torchrun and FSDP2)."""

    threads: Count = 0
    """CPU threads of each rank. 0: the machine's cores divided among the ranks."""

    ckpt: Checkpointing | None = None
    """Checkpointing. `--ckpt` switches it on with its defaults."""

    optim: Optimizer = Optimizer()
    """The optimiser."""

    scheduler: Scheduler = Scheduler()
    """The learning rate schedule."""

    packing: Packing = Packing()
    """Sequence packing and gradient accumulation."""

    export_weights: bool = True
    """Write the final model to `weights/step_N` in Hugging Face's format."""


class SftRecipe(Trainer):
    """Supervised fine-tuning: the trainer alone, fed from a data set."""

    data: SftData
    """The data set."""

    loss: LossTable = PluginTable(type="cross_entropy")
    """What is minimised."""


class RlTrainer(Trainer):
    """The trainer of a reinforcement learning job, fed with rollouts."""

    loss: LossTable = PluginTable(type="grpo")
    """What is minimised."""

    warm_start: Path | None = None
    """A recipe for supervised fine-tuning whose final weights are the start. They are trained
    first if they are not there."""

    rollout_timeout: Seconds = 1800.0
    """How long to wait for a batch of rollouts, in seconds."""


class SamplingOptions(Section):
    """How completions are drawn."""

    max_tokens: PositiveInt = 16
    """Tokens a completion at most."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 is greedy."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens whose probabilities add up to this."""

    top_k: Count = 0
    """Draw from the likeliest so many tokens. 0: from all."""


class Evaluation(Section):
    """Score the policy on the environment's held-out problems."""

    num_problems: PositiveInt | None = None
    """How many of them. Unset: all, which an environment without end does not allow."""

    samples_per_problem: PositiveInt = 4
    """Completions of each."""

    interval: PositiveInt | None = None
    """Every this many steps, besides before the first and after the last."""

    sampling: SamplingOptions | None = None
    """Unset: as in training."""


class Client(Section):
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
    def _one_form(self) -> Client:
        if self.base_url is not None and self.base_urls:
            raise ValueError("give either `base_url` or `base_urls`, not both")
        if len(set(self.base_urls)) < len(self.base_urls):
            raise ValueError("`base_urls` names a server twice")
        return self

    @property
    def servers(self) -> list[str]:
        """The address of every server."""
        return self.base_urls or [self.base_url or "http://127.0.0.1:8000"]


class Orchestrator(Section):
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

    ckpt: Checkpointing | None = None
    """Checkpointing, as the trainer's."""

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

    sampling: SamplingOptions = SamplingOptions()
    """How completions are drawn."""

    evaluation: Evaluation | None = Evaluation()
    """Held-out evaluation before the first and after the last step."""

    client: Client = Client()
    """The inference server."""

    policy_timeout: Seconds = 1800.0
    """How long to wait for the trainer to publish a policy, in seconds."""


class Inference(Section):
    """The inference server. It holds no state: every policy is sent to it."""

    host: str = "127.0.0.1"
    """The address to listen on. Any other than loopback needs a key in `api_key_env`, and then
    everything but `/health` is for those who have it."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port to listen on. 0: any free one."""

    seed: Count = 0
    """Draws the random weights of a model without a name."""

    output_dir: Path
    """The run's directory, whose `weights` may be loaded."""

    model: ModelTable
    """The model. Which weights it starts with does not matter to a job."""

    engine: EngineTable = PluginTable(type="transformers")
    """What generates."""

    max_length: PositiveInt | None = None
    """Tokens of prompt and completion together at most. Unset: what the model can hold."""

    max_sequences: PositiveInt = 65536
    """Completions of one request at most, over all its prompts."""

    max_running: PositiveInt = 64
    """Requests that the engine is given at a time. The embedded one works on them one by one."""

    max_queued: Count = 1024
    """Requests that may wait for their turn besides. What comes then is answered with 429 and is
    to be asked again."""

    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """Bytes of a request's body at most."""

    weight_update: Literal["wait", "keep"] = "wait"
    """What new weights do to requests in flight: `wait` for their end, or `keep` them going, and
    then each completion says which of its tokens are of which policy. The engine must be able to
    do that."""

    threads: Count = 0
    """CPU threads. 0: all cores."""

    allowed_dirs: list[Path] = []
    """Directories below which weights may be loaded. Unset: the run's `weights`; for a server
    started by hand, `outputs` below the working directory."""

    api_key_env: str = "TORCHRL_CKPT_API_KEY"
    """The environment variable with the key that changing the weights needs. Where it is not set,
    a random key is made and left for this user's other processes."""


class RlRecipe(Section):
    """Reinforcement learning: trainer, orchestrator and, if it has its section, inference."""

    shared_keys: ClassVar[tuple[str, ...]] = ("max_steps", "seed", "output_dir", "model", "ckpt")
    """Keys of the root that reach every section that has them."""

    max_steps: PositiveInt | None = None
    """The last step, of trainer and orchestrator."""

    seed: Count | None = None
    """The seed of every process."""

    output_dir: Path | None = None
    """The run's directory. Unset: `outputs/` and the name of the recipe, below the working
    directory."""

    model: ModelTable | None = None
    """The model of every process."""

    ckpt: Checkpointing | None = None
    """Checkpointing, of trainer and orchestrator. `--ckpt` switches it on with its defaults."""

    trainer: RlTrainer
    """The training process."""

    orchestrator: Orchestrator
    """The process that makes rollouts."""

    inference: Inference | None = None
    """The server to start with the job. Off: the job uses the one at
    `orchestrator.client.base_url`."""
