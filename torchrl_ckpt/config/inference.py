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
    Section,
)


class InferenceConfig(Section):
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
