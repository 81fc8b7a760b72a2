"""`[inference]`: the inference server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from torchrl_ckpt.config.section import (
    Count,
    EngineTable,
    ModelTable,
    PluginTable,
    PositiveInt,
    Seconds,
    Section,
    VariableName,
)


class InferenceConfig(Section):
    """The inference server. It has no state: the orchestrator has it load each policy."""

    host: str = "127.0.0.1"
    """The address to listen on. Any address but loopback needs a key in `api_key_env`; every
    endpoint but `/health` then requires the key."""

    allowed_hosts: list[str] = []
    """Names by which clients address the server, besides `host`, `localhost` and, where other
    machines can reach it, this machine's name and any address. A request to another name is
    refused: a web page may have made it."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port to listen on. 0: any free one."""

    seed: Count = 0
    """The seed of the random weights of a model without a `name`."""

    output_dir: Path
    """The run's directory. Weights below its `weights` may be loaded."""

    model: ModelTable
    """The model. In a job its starting weights do not matter: the orchestrator sends others."""

    engine: EngineTable = PluginTable(type="transformers")
    """The engine that generates completions."""

    max_length: PositiveInt | None = None
    """The largest number of tokens of prompt and completion together. Unset: the model's limit."""

    max_sequences: PositiveInt = 65536
    """The largest number of completions of one request, over all its prompts."""

    max_running: PositiveInt = 64
    """The largest number of requests in the engine at a time. The engine `transformers` processes
    them one by one."""

    max_queued: Count = 1024
    """The largest number of requests that wait for the engine. Further ones are refused with status
    429, for the client to retry."""

    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """The largest request body, in bytes. The bodies of all requests in progress may have four
    times as much together."""

    client_timeout: Seconds = 30.0
    """The longest time, in seconds, for a client to send the head of a request or its body, and to
    read what it has been sent. Slower clients are disconnected."""

    weight_update: Literal["wait", "keep"] = "wait"
    """When new weights are loaded: `wait` until requests in flight have ended, or `keep` them
    running. A completion then states which of its tokens each policy generated. `keep` needs an
    engine that supports it."""

    threads: Count = 0
    """CPU threads. 0: all cores."""

    allowed_dirs: list[Path] = []
    """Directories below which weights may be loaded. Empty: the run's `weights`; for a server
    started by hand, `outputs` in the working directory."""

    api_key_env: VariableName = "TORCHRL_CKPT_API_KEY"
    """The environment variable with the API key that changing the weights requires. If it is not
    set, a random key is created and stored for this user's other processes. Only the command line
    may name one that does not begin with `TORCHRL_CKPT_`."""
