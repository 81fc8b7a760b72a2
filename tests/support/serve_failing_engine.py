"""Serves an engine that fails on demand:

    python -m tests.support.serve_failing_engine SOCKET_DESCRIPTOR FILE

It fails once FILE exists. Its loads never return, as calls of an engine in another process may not.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.support.inference_server import KEY
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.server import serve
from torchrl_ckpt.run import logs


class FailingEngine(ScriptedEngine):
    """Reports a failure once `failure_file` exists."""

    failure_file = Path(sys.argv[2])

    def failure(self) -> str | None:
        return "killed by a test" if self.failure_file.exists() else None


if __name__ == "__main__":
    logs.configure(None)
    engine = FailingEngine([4])
    engine.stepwise = True
    allowed = engine.failure_file.parent
    serve(
        InferenceConfig(output_dir=allowed, model={"type": "transformers"}),
        model=tiny_model(),
        engine=engine,
        key=KEY,
        allowed_dirs=[allowed],
        sockets=[socket.socket(fileno=int(sys.argv[1]))],
    )
