"""Serves the tiny model:

    python -m tests.support.serve_tiny SOCKET_DESCRIPTOR DIRECTORY OPTIONS

Weights load from below DIRECTORY. OPTIONS are keys of the recipe's `[inference]`, as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from torchrl_ckpt_transformers.transformers_engine import (
    TransformersEngine,
    TransformersEngineConfig,
)

from tests.support.inference_server import API_KEY
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.server import serve
from torchrl_ckpt.run import logs

if __name__ == "__main__":
    descriptor, allowed = int(sys.argv[1]), Path(sys.argv[2])
    options = {"output_dir": allowed, "model": {"type": "transformers"}, "threads": 1}
    logs.configure(None)
    serve(
        InferenceConfig.model_validate(options | json.loads(sys.argv[3])),
        model=tiny_model(),
        engine=TransformersEngine(TransformersEngineConfig(device="cpu")),
        key=os.environ.get(API_KEY),
        allowed_dirs=[allowed],
        sockets=[socket.socket(fileno=descriptor)],
    )
