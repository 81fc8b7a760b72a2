"""Serves the tiny model, and lies as a file says:

    python -m tests.support.serve_liar SOCKET_DESCRIPTOR DIRECTORY FILE

The file holds one of `LIES`, `BROKEN_DECODING`, or nothing for an honest server.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchrl_ckpt_transformers.digest import digest_tensors
from torchrl_ckpt_transformers.transformers_engine import (
    TransformersEngine,
    TransformersEngineConfig,
)

from tests.support.inference_server import API_KEY
from tests.support.tiny_model import TinyModel, tiny_model
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.inference.server import serve

LIES = ("old weights", "half of the weights", "half, with an honest digest", "a load that raises")
"""What the engine can do instead of loading the weights."""

BROKEN_DECODING = "broken decoding"
"""A lie about completions alone: whole sequences are scored rightly, but each token is drawn as if
half of what the cache holds were not there."""


class LyingEngine(TransformersEngine):
    """Reports success and the right digest for weights that it has not loaded, or not all of."""

    lie_file: Path
    claimed_digest: str | None = None

    def start(self, model: TinyModel, *, max_length: int | None, threads: int) -> None:
        super().start(model, max_length=max_length, threads=threads)
        self.module = model.module
        self.module.register_forward_pre_hook(self._break_decoding, with_kwargs=True)

    def _break_decoding(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if kwargs.get("past_key_values") is None or self.lie_file.read_text() != BROKEN_DECODING:
            return None
        mask = kwargs["attention_mask"].clone()
        mask[:, : mask.shape[1] // 2] = 0
        return args, {**kwargs, "attention_mask": mask}

    async def load_weights(self, directory: Path) -> None:
        lie = self.lie_file.read_text()
        self.claimed_digest = None
        if lie not in LIES:
            await super().load_weights(directory)
            return
        weights = load_file(directory / "model.safetensors")
        if lie != "half, with an honest digest":
            self.claimed_digest = digest_tensors(weights)
        if lie == "old weights":
            return
        half = dict(list(weights.items())[: len(weights) // 2])
        self.module.load_state_dict(half, strict=False)
        if lie == "a load that raises":
            raise RuntimeError("out of memory, say")

    async def weights_digest(self) -> str:
        return self.claimed_digest or await super().weights_digest()


if __name__ == "__main__":
    descriptor, allowed = int(sys.argv[1]), Path(sys.argv[2])
    LyingEngine.lie_file = Path(sys.argv[3])
    serve(
        InferenceConfig(output_dir=allowed, model={"type": "transformers"}, threads=1),
        model=tiny_model(),
        engine=LyingEngine(TransformersEngineConfig(device="cpu")),
        key=os.environ[API_KEY],
        allowed_dirs=[allowed],
        sockets=[socket.socket(fileno=descriptor)],
    )
