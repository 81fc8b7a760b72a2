"""Runs the inference server that a recipe describes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.server import serve
from torchrl_ckpt.registry.loading import create
from torchrl_ckpt.run.directory import RunDirectory

# The default parent of `output_dir`, below which runs publish their policies.
_DEFAULT_OUTPUTS = "outputs"


def serve_recipe(config: InferenceConfig, listener: socket.socket, *, in_job: bool) -> None:
    """Serve on `listener` until stopped.

    By default, a server `in_job` may load the weights of its own run, and one started by hand those
    of every run below `outputs` in the working directory. Raises as `serve` does, and `ModelError`.
    """
    default_dir = (
        RunDirectory(config.output_dir, attempt=0).weights
        if in_job
        else Path(_DEFAULT_OUTPUTS).resolve()
    )
    serve(
        config,
        model=create("models", config.model),
        engine=create("engines", config.engine),
        key=os.environ.get(config.api_key_env) or None,
        allowed_dirs=config.allowed_dirs or [default_dir],
        sockets=[listener],
        in_job=in_job,
    )
