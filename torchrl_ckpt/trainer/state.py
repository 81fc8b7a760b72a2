"""The trainer's state: everything that must be the same after a resume, as tensors and as JSON."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchrl_ckpt.checkpoint.layout import MODEL, OPTIM
from torchrl_ckpt.plugin_api.plugin import Json
from torchrl_ckpt.trainer.source import BatchSource

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@dataclass
class Progress:
    """How far training is: steps done, and samples and tokens trained on by all ranks."""

    step: int = 0
    samples: int = 0
    tokens: int = 0


class TrainingState:
    """What a checkpoint holds of the trainer, but for the random generators.

    Tensors of model and optimiser go through the checkpoint backend. The rest is JSON, so that
    nothing in a checkpoint has to be unpickled.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        source: BatchSource,
        progress: Progress,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.source = source
        self.progress = progress

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return model and optimiser tensors by unique name, sharded as they are.

        They share memory with the live ones.
        """
        return self._tensors_and_scalars()[0]

    def snapshot(self) -> tuple[dict[str, torch.Tensor], Json]:
        """Return the `tensors`, which stay live, and the rest as it is now.

        The rest is the optimiser's scalars, the scheduler, the progress, and the position in the
        data.
        """
        tensors, scalars = self._tensors_and_scalars()
        return tensors, {
            "progress": asdict(self.progress),
            "optimizer": scalars,
            "scheduler": self.scheduler.state_dict(),
            "data": self.source.state_dict(),
        }

    def template(self) -> dict[str, torch.Tensor]:
        """Return tensors with the names and shapes that `tensors` has from now on; the values do
        not matter.

        An optimiser has no state before its first step, and never has any for a parameter without
        a gradient, while a resume expects both. torch's functions create it by a step that changes
        no parameter but would count: the state is set to zero again, as AdamW begins.
        """
        is_fresh = not self.optimizer.state
        tensors = self.tensors()
        if is_fresh:
            for moments in self.optimizer.state.values():
                for moment in moments.values():
                    moment.zero_()
        return tensors

    @property
    def changes_in_forward(self) -> bool:
        """Whether a forward pass may change what is saved: buffers, such as running means."""
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return bool(self.model.state_dict().keys() - parameters)

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Json) -> None:
        """Take over a checkpoint: `tensors` as `tensors()` names them, with the loaded values, and
        the rest of the `snapshot`."""
        model: dict[str, Any] = {
            name[len(MODEL) :]: t for name, t in tensors.items() if name.startswith(MODEL)
        }
        set_model_state_dict(self.model, model)
        optim: dict[str, Any] = {
            name[len(OPTIM) :]: t for name, t in tensors.items() if name.startswith(OPTIM)
        }
        # JSON has turned tuples into lists.
        optim |= {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state["optimizer"].items()
        }
        hyper_parameters = [_without_params(group) for group in self.optimizer.param_groups]
        set_optimizer_state_dict(self.model, self.optimizer, optim, options=_FLAT)
        base_lrs = self.scheduler.base_lrs
        self.scheduler.load_state_dict({**state["scheduler"], "base_lrs": base_lrs})
        # Hyper-parameters are the recipe's. Where it has not changed, they are those of the
        # checkpoint to the bit.
        for group, from_recipe, lr in zip(
            self.optimizer.param_groups, hyper_parameters, self._next_lrs(), strict=True
        ):
            group.update(from_recipe, lr=lr)
        self.source.load_state_dict(state["data"])
        self.progress = Progress(**state["progress"])

    def _next_lrs(self) -> list[float]:
        """Each group's learning rate for the next step, as `LambdaLR` computes it."""
        done, scheduler = self.scheduler.last_epoch, self.scheduler
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [float(base) * factor(done) for base, factor in pairs]

    def _tensors_and_scalars(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        model: dict[str, Any] = get_model_state_dict(self.model)
        optim: dict[str, Any] = get_optimizer_state_dict(self.model, self.optimizer, options=_FLAT)
        tensors = {MODEL + name: tensor for name, tensor in model.items()}
        tensors |= {OPTIM + n: v for n, v in optim.items() if isinstance(v, torch.Tensor)}
        return tensors, {n: v for n, v in optim.items() if not isinstance(v, torch.Tensor)}


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def rng_state() -> Json:
    """Return the state of every random generator of this rank: Python's, numpy's, torch's, and that
    of its CUDA device, if any."""
    name, keys, position, has_gauss, cached = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True)
    )
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _to_hex(torch.get_rng_state()),
        "cuda": _to_hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
    }


def set_rng_state(state: Json) -> None:
    """Restore what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_from_hex(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_hex(state["cuda"]))


def _to_hex(tensor: torch.Tensor) -> str:
    return tensor.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
