"""The optimiser and its learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from torchrl_ckpt.config.trainer import OptimizerConfig, SchedulerConfig


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> AdamW:
    return AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def build_scheduler(optimizer: Optimizer, config: SchedulerConfig, max_steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda done: lr_factor(done, config, max_steps))


def lr_factor(steps_done: int, config: SchedulerConfig, max_steps: int) -> float:
    """Return the factor of the learning rate for the step after `steps_done` steps."""
    if steps_done < config.warmup_steps:
        return (steps_done + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    end = config.decay_steps or max_steps
    span = max(1, end - config.warmup_steps)
    decayed = min(1.0, (steps_done - config.warmup_steps) / span)
    if config.name == "cosine":
        decayed = (1 - math.cos(math.pi * decayed)) / 2
    return 1.0 - (1.0 - config.min_ratio) * decayed
