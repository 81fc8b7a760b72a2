"""Everything that must be the same after a resume, as tensors and as JSON."""

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
    """How far training is: updates done, samples and tokens gone through, over all ranks."""

    step: int = 0
    samples: int = 0
    tokens: int = 0


class TrainingState:
    """The trainer's state. Tensors go through the checkpoint backend, the rest is JSON, so that
    nothing in a checkpoint has to be unpickled."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        source: BatchSource,
        progress: Progress,
    ) -> None:
        self.model = model
        self.progress = progress
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._source = source

    def tensors(self) -> dict[str, torch.Tensor]:
        """Model and optimiser tensors by unique name, sharded as they are; they share memory with
        the live ones."""
        return self._parts()[0]

    def snapshot(self) -> tuple[dict[str, torch.Tensor], Json]:
        """The `tensors`, live as they are, and as JSON the optimiser's scalars, the scheduler, the
        progress and the place in the data, as of now."""
        tensors, scalars = self._parts()
        return tensors, {
            "progress": asdict(self.progress),
            "optimizer": scalars,
            "scheduler": self._scheduler.state_dict(),
            "data": self._source.state_dict(),
        }

    def form(self) -> dict[str, torch.Tensor]:
        """Tensors as `tensors` names and shapes them from now on; the values mean nothing.

        An optimiser has no state before its first step, and never any of a parameter that gets no
        gradient, while a resume expects both. torch's own functions make it by a step that changes
        nothing, which would count: it is set to zero again, as AdamW begins.
        """
        is_fresh = not self._optimizer.state
        tensors = self.tensors()
        if is_fresh:
            for moments in self._optimizer.state.values():
                for moment in moments.values():
                    moment.zero_()
        return tensors

    @property
    def changes_in_forward(self) -> bool:
        """Whether a forward pass may change what is saved: buffers, such as running means."""
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return bool(self.model.state_dict().keys() - parameters)

    def restore(self, tensors: Mapping[str, torch.Tensor], plain: Json) -> None:
        """Take over `tensors` (as `tensors()` named them, with the values loaded) and `plain`."""
        model: dict[str, Any] = {
            name[len(MODEL) :]: t for name, t in tensors.items() if name.startswith(MODEL)
        }
        set_model_state_dict(self.model, model)
        optim: dict[str, Any] = {
            name[len(OPTIM) :]: t for name, t in tensors.items() if name.startswith(OPTIM)
        }
        # JSON has made lists of the tuples.
        optim |= {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plain["optimizer"].items()
        }
        hyper_parameters = [_without_params(group) for group in self._optimizer.param_groups]
        set_optimizer_state_dict(self.model, self._optimizer, optim, options=_FLAT)
        base_lrs = self._scheduler.base_lrs
        self._scheduler.load_state_dict({**plain["scheduler"], "base_lrs": base_lrs})
        # The recipe's word counts for hyper-parameters: where it has not changed, these are the
        # checkpoint's own to the bit.
        for group, fresh, lr in zip(
            self._optimizer.param_groups, hyper_parameters, self._rates(), strict=True
        ):
            group.update(fresh, lr=lr)
        self._source.load_state_dict(plain["data"])
        self.progress = Progress(**plain["progress"])

    def _rates(self) -> list[float]:
        """Each group's learning rate for the next step, as `LambdaLR` computes it."""
        done, scheduler = self._scheduler.last_epoch, self._scheduler
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        return [float(base) * factor(done) for base, factor in pairs]

    def _parts(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        model: dict[str, Any] = get_model_state_dict(self.model)
        optim: dict[str, Any] = get_optimizer_state_dict(self.model, self._optimizer, options=_FLAT)
        tensors = {MODEL + name: tensor for name, tensor in model.items()}
        tensors |= {OPTIM + n: v for n, v in optim.items() if isinstance(v, torch.Tensor)}
        return tensors, {n: v for n, v in optim.items() if not isinstance(v, torch.Tensor)}


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def rng_state() -> Json:
    """Python's, numpy's, torch's, and that of this rank's CUDA device where there is one."""
    name, keys, position, has_gauss, cached = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True)
    )
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _hex(torch.get_rng_state()),
        "cuda": _hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
    }


def set_rng_state(state: Json) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _hex(tensor: torch.Tensor) -> str:
    return tensor.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
