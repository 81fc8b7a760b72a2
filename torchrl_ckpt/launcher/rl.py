"""Runs reinforcement learning: inference, orchestrator and trainer, each in its own process."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.launcher import components
from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.launcher.engine_env.engine_venv import server_python
from torchrl_ckpt.launcher.job import finished_job
from torchrl_ckpt.launcher.start import begin_attempt
from torchrl_ckpt.launcher.summary import checkpoint_lines, missing_rows, stopped_early
from torchrl_ckpt.launcher.warm_start import warm_started
from torchrl_ckpt.plugin_api.errors import RunInterrupted
from torchrl_ckpt.run import metrics
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.resolved import write_resolved
from torchrl_ckpt.serving_api.listener import open_listener


def run_rl(recipe: RlRecipe) -> None:
    """Train to the last step. Raises `RunInterrupted` if the user stops the run before."""
    python = None if recipe.inference is None else server_python(recipe.inference)
    # The port comes first: if it is in use, nothing has been written yet.
    with (
        _listening(recipe.inference) as listener,
        begin_attempt("rl", recipe) as start,
    ):
        attempt, run = start.attempt, start.attempt.run
        recipe = recipe.model_copy(update={"trainer": warm_started(recipe.trainer, attempt)})
        if listener is not None:
            recipe = _with_own_server(recipe, listener)
        write_resolved(run.resolved, "rl", recipe, attempt)
        job = _components(recipe, run, listener, python)
        with finished_job(start, job, title=f"Reinforcement learning in {run.root}") as display:
            if message := stopped_early(attempt):
                raise RunInterrupted(message)
            display.finish(_summary(attempt))


@contextmanager
def _listening(config: InferenceConfig | None) -> Iterator[socket.socket | None]:
    """Listen on the address of the job's own server, if it has one."""
    if config is None:
        yield None
        return
    with open_listener(config.host, config.port) as listener:
        yield listener


def _with_own_server(recipe: RlRecipe, listener: socket.socket) -> RlRecipe:
    """Return `recipe` with the address of the job's own server for the orchestrator."""
    orchestrator = recipe.orchestrator
    address = {"base_url": _url(listener), "base_urls": []}
    client = orchestrator.client.model_copy(update=address)
    return recipe.model_copy(
        update={"orchestrator": orchestrator.model_copy(update={"client": client})}
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


def _summary(attempt: Attempt) -> list[str]:
    run, last_step = attempt.run, attempt.max_steps
    rows = metrics.read(run.metrics)
    lines = [
        f"training finished: step {last_step}",
        f"model: {run.weights / f'step_{last_step}'}",
        *checkpoint_lines(attempt),
        *missing_rows(rows, last_step),
    ]
    evaluations = [row for row in rows if row["component"] == "evaluation"]
    if evaluations and evaluations[-1]["step"] == last_step:
        # A number that is not finite is a string there.
        before, after = (float(evaluations[index]["reward/mean"]) for index in (0, -1))
        lines += [
            f"held-out reward before (step {evaluations[0]['step']}): {before:.4f}",
            f"held-out reward after (step {evaluations[-1]['step']}): {after:.4f} "
            f"({after - before:+.4f})",
        ]
    return lines
