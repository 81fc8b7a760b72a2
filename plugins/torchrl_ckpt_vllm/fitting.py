"""Whether a directory holds weights of the model that is served, told from the files' headers.

vLLM itself would load what fits of it, and warn in its log of the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_ckpt.plugin_api.engine_checks import check_same_model, hyper_parameters
from torchrl_ckpt.plugin_api.errors import ModelError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fingerprint:
    """What must be the same in weights that take each other's place: hyper-parameters and the
    names and shapes of the tensors."""

    hyper_parameters: dict[str, Any]
    shapes: dict[str, Shape]

    @classmethod
    def of(cls, directory: Path) -> Fingerprint:
        """Raises `ModelError` for a directory that cannot be read."""
        try:
            config = json.loads((directory / "config.json").read_text())
            shapes = _shapes(directory)
        except Exception as error:  # safetensors has no base for what it raises
            raise ModelError(f"the weights at {directory} cannot be read: {error}") from error
        if not shapes:
            raise ModelError(f"{directory} holds no weights (*.safetensors)")
        return cls(hyper_parameters(config), shapes)

    def check(self, directory: Path) -> None:
        """Raises `ModelError` where `directory` is of another model than this."""
        offered = Fingerprint.of(directory)
        check_same_model(
            directory,
            served=self.hyper_parameters | self.shapes,
            offered=offered.hyper_parameters | offered.shapes,
        )


def _shapes(directory: Path) -> dict[str, Shape]:
    """By tensor. Opening a file checks that it is as long as its header says."""
    from safetensors import safe_open

    shapes: dict[str, Shape] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes
