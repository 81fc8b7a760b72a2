"""Tries a plugin on the smallest input: an environment on a problem, a loss on three tokens."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchrl_ckpt.config.section import PluginTable
from torchrl_ckpt.plugin_api.checked_environment import CheckedEnvironment
from torchrl_ckpt.plugin_api.losses import Loss, LossInputs, LossOutput
from torchrl_ckpt.plugin_api.plugin import Kind
from torchrl_ckpt.registry.loading import broken, create

if TYPE_CHECKING:
    import torch

_OPTIONAL_INPUTS = frozenset({"advantages", "old_logprobs"})
_VOCABULARY = 5


def try_plugin(kind: Kind, table: PluginTable) -> str | None:
    """Make the plugin that `table` names and try it; return what came out.

    None for a kind that is not tried, which is not made either. Raises as `create` does,
    `EnvironmentFailed`, and `PluginBroken` for a loss that breaks its contract.
    """
    if kind == "environments":
        return _try_environment(create("environments", table))
    if kind == "losses":
        return _try_loss(table.type, create("losses", table))
    return None


def _try_environment(environment: CheckedEnvironment) -> str:
    environment.size("train")
    environment.size("eval")
    problem = environment.problem("train", 0)
    score = environment.score(problem, problem.answer)
    return f"the answer to problem {reprlib.repr(problem.id)} scores {score.reward:g}"


def _try_loss(name: str, loss: Loss) -> str:
    if not isinstance(loss.requires, frozenset | set) or not loss.requires <= _OPTIONAL_INPUTS:
        expected = "a set of any of `advantages` and `old_logprobs`"
        raise broken("losses", name, f"its `requires` is {loss.requires!r}; expected {expected}")
    inputs = _three_tokens(loss.requires)
    try:
        output = loss(inputs)
    except Exception as error:
        raise broken("losses", name, error, "it raises when called on three tokens: ") from error
    if fault := _output_fault(output) or _gradient_fault(output, inputs.logits):
        raise broken("losses", name, f"called on three tokens, {fault}")
    return f"the loss of three tokens is {output.loss.item():g}, with a gradient"


def _three_tokens(required: frozenset[str]) -> LossInputs:
    """A row of three tokens of two samples."""
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, _VOCABULARY, generator=generator).requires_grad_()
    optional = {
        "advantages": torch.tensor([[0.5, 0.5, -0.5]]),
        "old_logprobs": torch.tensor([[-1.5, -1.7, -1.6]]),
    }
    return LossInputs(
        logits=logits,
        targets=torch.tensor([[1, 2, 3]]),
        mask=torch.ones(1, 3, dtype=torch.bool),
        documents=torch.tensor([[0, 0, 1]]),
        num_tokens=3,
        num_samples=2,
        **{name: value for name, value in optional.items() if name in required},
    )


def _output_fault(output: object) -> str | None:
    if not isinstance(output, LossOutput):
        return f"it returned {_shown(output)}; expected a `LossOutput`"
    if fault := _number_fault(output.loss):
        return f"it returned a `loss` that {fault}"
    if not isinstance(output.metrics, Mapping):
        return f"it returned `metrics` = {_shown(output.metrics)}; expected a mapping"
    for metric, value in output.metrics.items():
        if not isinstance(metric, str) or metric in ("", "loss"):
            return f"it returned a metric called {metric!r}; expected text other than `loss`"
        if fault := _number_fault(value):
            return f"it returned a metric `{metric}` that {fault}"
    return None


def _number_fault(value: Any) -> str | None:
    import torch

    if not isinstance(value, torch.Tensor):
        return f"is {_shown(value)}; expected a tensor of one number"
    if value.numel() != 1:
        return f"has the shape {list(value.shape)}; expected a tensor of one number"
    return None if value.isfinite().all() else f"is {value.item()}; expected a finite number"


def _gradient_fault(output: LossOutput, logits: torch.Tensor) -> str | None:
    import torch

    if not output.loss.requires_grad:
        return "it returned a `loss` without a gradient: it does not depend on the logits"
    try:
        torch.autograd.backward(output.loss)
    except Exception as error:
        return f"the backward pass of its `loss` raises {type(error).__name__}: {error}"
    if logits.grad is None:
        return "its `loss` gives the logits no gradient"
    if not logits.grad.isfinite().all():
        return f"its `loss` gives the logits the gradient {_shown(logits.grad.tolist())}"
    return None


def _shown(value: object) -> str:
    return f"{reprlib.repr(value)} ({type(value).__name__})"
