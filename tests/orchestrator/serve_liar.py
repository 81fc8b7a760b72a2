"""Serves the tiny model, and lies as a file says:

    python -m tests.orchestrator.serve_liar SOCKET_DESCRIPTOR DIRECTORY FILE

The file holds the name of one of `LIES`, or nothing for an honest server.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file
from torchrl_ckpt_transformers.digest import digest_tensors
from torchrl_ckpt_transformers.engine import TransformersEngine, TransformersEngineConfig

import torchrl_ckpt.inference.server
from tests.support.inference_server import API_KEY
from tests.support.tiny_model import tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.app import build_app
from torchrl_ckpt.inference.server import serve

LIES = ("old weights", "half of the weights", "half, with an honest digest", "a load that raises")
"""What the engine can do instead of loading weights. "another job" sends the server other weights
before every completion."""


class LyingEngine(TransformersEngine):
    """Reports success and the right digest for weights that it has not taken, or not all of."""

    lie_file: Path
    _claimed: str | None = None

    def _load(self, directory: Path) -> None:
        lie = self.lie_file.read_text()
        self._claimed = None
        if lie not in LIES:
            super()._load(directory)
            return
        weights = load_file(directory / "model.safetensors")
        if lie != "half, with an honest digest":
            self._claimed = digest_tensors(weights)
        if lie == "old weights":
            return
        half = dict(list(weights.items())[: len(weights) // 2])
        self._model.load_state_dict(half, strict=False)
        if lie == "a load that raises":
            raise RuntimeError("out of memory, say")

    def _digest(self) -> str:
        return self._claimed or super()._digest()


def usurped(app: Any, lie_file: Path, other: Path, key: str) -> Any:
    """`app`, to which another job sends the weights in `other` at the worst moment."""
    transport = httpx.ASGITransport(app)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        message = {}
        if scope["type"] == "http" and scope["path"] == "/v1/completions":
            message = await receive()
            if b'"echo"' not in message["body"] and lie_file.read_text() == "another job":
                async with httpx.AsyncClient(transport=transport, base_url="http://it") as client:
                    body = {"directory": str(other), "version": 0}
                    headers = {"Authorization": f"Bearer {key}"}
                    answer = await client.post("/weights", json=body, headers=headers)
                    answer.raise_for_status()

        async def again() -> Any:
            nonlocal message
            first, message = message, {}
            return first or await receive()

        await app(scope, again, send)

    return application


if __name__ == "__main__":
    descriptor, allowed = int(sys.argv[1]), Path(sys.argv[2])
    LyingEngine.lie_file = Path(sys.argv[3])
    key = os.environ[API_KEY]

    def build(*arguments: Any, **named: Any) -> Any:
        app = build_app(*arguments, **named)
        return usurped(app, LyingEngine.lie_file, allowed / "published/weights/step_1", key)

    torchrl_ckpt.inference.server.build_app = build
    serve(
        InferenceConfig(output_dir=allowed, model={"type": "transformers"}, threads=1),
        model=tiny_model(),
        engine=LyingEngine(TransformersEngineConfig(device="cpu")),
        key=key,
        allowed_dirs=[allowed],
        sockets=[socket.socket(fileno=descriptor)],
    )
