"""Runs reinforcement learning: inference, orchestrator and trainer, each in its own process."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.settings import to_json
from torchrl_ckpt.launcher import components
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.engine_env.engine_venv import server_python
from torchrl_ckpt.launcher.process import Component
from torchrl_ckpt.launcher.start import Attempt, begin
from torchrl_ckpt.launcher.summary import checkpoint_lines, last_row, stopped_early
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.launcher.warm_start import warm_started
from torchrl_ckpt.plugin_api.errors import RunInterrupted
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.resolved import write_resolved
from torchrl_ckpt.serving_api.listener import bind


def run_rl(recipe: RlRecipe) -> None:
    """Train to the end. Raises `RunInterrupted` where it was asked to stop before."""
    config = recipe.trainer
    python = None if recipe.inference is None else server_python(recipe.inference)
    # The port first: whether it is free shows before anything is written.
    with (
        _listening(recipe.inference) as listener,
        begin(config.output_dir, config.ckpt, config.max_steps, to_json(recipe)) as attempt,
    ):
        run = attempt.run
        settled = _settle(recipe, attempt, listener)
        write_resolved(run.resolved, "rl", settled)
        with Display(
            f"Reinforcement learning in {run.root}",
            run.metrics,
            run.progress,
            tasks={"trainer": config.max_steps, "orchestrator": config.max_steps},
            start=attempt.resumed_from,
        ) as display:
            for note in attempt.notes:
                display.message(note, "warning")
            supervise(
                _components(settled, run, listener, python),
                finite=["trainer", "orchestrator"],
                display=display,
                on_stop_requested=run.stop.touch,
            )
            if message := stopped_early(run, settled.trainer):
                raise RunInterrupted(message)
            display.finish(_summary(settled, run))


@contextmanager
def _listening(config: InferenceConfig | None) -> Iterator[socket.socket | None]:
    if config is None:
        yield None
        return
    with bind(config.host, config.port) as listener:
        yield listener


def _settle(recipe: RlRecipe, attempt: Attempt, listener: socket.socket | None) -> RlRecipe:
    """The recipe with what this start has decided in place."""
    shared: dict[str, Any] = {"attempt": attempt.run.attempt}
    trainer = recipe.trainer
    if trainer.ckpt is not None and attempt.resumed_from:
        # The model comes from the checkpoint, so a warm start is not needed again.
        step = {"resume_step": attempt.resumed_from}
        shared["ckpt"] = trainer.ckpt.model_copy(update=step)
    else:
        trainer = warm_started(trainer)
    orchestrator = recipe.orchestrator
    if listener is not None:
        client = orchestrator.client.model_copy(
            update={"base_url": _url(listener), "base_urls": []}
        )
        orchestrator = orchestrator.model_copy(update={"client": client})
    return recipe.model_copy(
        update={
            "trainer": trainer.model_copy(update=shared),
            "orchestrator": orchestrator.model_copy(update=shared),
        }
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _components(
    recipe: RlRecipe, run: RunDirectory, listener: socket.socket | None, python: Path | None
) -> list[Component]:
    if recipe.inference is None or listener is None or python is None:
        return [components.orchestrator(run, {}), components.trainer(run, recipe.trainer)]
    key = os.environ.get(recipe.inference.api_key_env) or secrets.token_urlsafe(32)
    return [
        components.inference(run, {recipe.inference.api_key_env: key}, listener.fileno(), python),
        components.orchestrator(run, {recipe.orchestrator.client.api_key_env: key}),
        components.trainer(run, recipe.trainer),
    ]


def _summary(recipe: RlRecipe, run: RunDirectory) -> list[str]:
    rows = metrics.read(run.metrics)
    row = last_row(rows, "trainer")
    lines = [
        f"training finished: step {row['step']}",
        f"model: {run.weights / f'step_{recipe.trainer.max_steps}'}",
        *checkpoint_lines(run, recipe.trainer.ckpt, recipe.trainer.max_steps),
    ]
    evaluations = [row for row in rows if row["component"] == "evaluation"]
    if evaluations and evaluations[-1]["step"] == recipe.trainer.max_steps:
        before, after = evaluations[0]["reward/mean"], evaluations[-1]["reward/mean"]
        lines += [
            f"held-out reward before (step {evaluations[0]['step']}): {before:.4f}",
            f"held-out reward after (step {evaluations[-1]['step']}): {after:.4f} "
            f"({after - before:+.4f})",
        ]
    return lines
