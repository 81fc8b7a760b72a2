"""The inference server from start to end: builds what the recipe names, serves, leaves."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.server import serve
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.directory import RunDirectory

# Where the runs of this directory publish their policies; see `output_dir` in the recipe's schema.
_RUNS = "outputs"


def serve_recipe(config: InferenceConfig, listener: socket.socket, *, in_job: bool) -> None:
    """Serve on `listener` until stopped.

    A server `in_job` loads the weights of its own run; one started by hand those of every run
    below the working directory.
    """
    own = RunDirectory(config.output_dir, attempt=0).weights if in_job else Path(_RUNS).resolve()
    serve(
        config,
        model=create("models", config.model),
        engine=create("engines", config.engine),
        key=os.environ.get(config.api_key_env) or None,
        allowed_dirs=config.allowed_dirs or [own],
        sockets=[listener],
    )
