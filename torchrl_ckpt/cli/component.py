"""The entry of a job's processes: `python -m torchrl_ckpt.cli.component NAME RESOLVED [SOCKET]`.

The launcher starts them. NAME is the component, RESOLVED the file `resolved.json`, and SOCKET the
file descriptor that the inference server listens on. A mistake of the user's is written to the log
as `error: ...`, and the launcher shows it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
from pathlib import Path

from torchrl_ckpt.cli.exit import exit_code_of
from torchrl_ckpt.config.inference import InferenceConfig
from torchrl_ckpt.config.orchestrator import OrchestratorConfig
from torchrl_ckpt.config.rl_recipe import RlRecipe
from torchrl_ckpt.config.section import Section
from torchrl_ckpt.config.sft_recipe import SftRecipe
from torchrl_ckpt.config.trainer import RlTrainerConfig, TrainerConfig
from torchrl_ckpt.plugin_api import heartbeat
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.plugin_api.parent_death import die_with_parent
from torchrl_ckpt.run import logs
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.resolved import (
    read_attempt,
    read_recipe,
    read_run_metadata,
    section_of,
)

_log = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Run the component until it ends. Raises a `UserError` for a mistake of the user's."""
    die_with_parent()
    component, resolved = argv[0], Path(argv[1])
    recipe = read_recipe(resolved)
    config = section_of(recipe, component)
    # Elsewhere RANK, if it is set, is of another job, which has started this one.
    has_others = isinstance(config, TrainerConfig) and config.ranks > 1
    rank = int(os.environ["RANK"]) if has_others else None
    logs.configure(rank)
    heartbeat.begin(component if rank is None else f"{component} rank {rank}")
    try:
        _run(config, recipe, resolved, argv[2:])
    except UserError as error:
        if error.__cause__ is not None:  # The message says what a plugin raised, not where.
            _log.error("the cause of the error below", exc_info=error.__cause__)
        raise


def _run(config: Section, recipe: Section, resolved: Path, more: list[str]) -> None:
    match config:
        case RlTrainerConfig() | SftRecipe():
            from torchrl_ckpt.trainer.main import train

            train(config, _attempt(resolved), read_run_metadata(resolved))
        case OrchestratorConfig():
            from torchrl_ckpt.orchestrator.main import orchestrate

            job = recipe if isinstance(recipe, RlRecipe) else None
            orchestrate(config, _attempt(resolved), job)
        case InferenceConfig():
            from torchrl_ckpt.inference.main import serve_recipe

            with socket.socket(fileno=int(more[0])) as listener:
                serve_recipe(config, listener, in_job=True)


def _attempt(resolved: Path) -> Attempt:
    attempt = read_attempt(resolved)
    assert attempt is not None
    return attempt


def _exit(component: str, code: int) -> None:
    """End the process; a rank of the trainer without C++ destructors.

    Once a process has made a DTensor, torch 2.13 keeps gloo's threads running even after
    `destroy_process_group`. Destructors race with them, and may abort a rank that has done all its
    work ("terminate called without an active exception"): the job would count as failed.
    """
    if component == "trainer":
        for child in multiprocessing.active_children():  # data workers
            child.terminate()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _exit(sys.argv[1], exit_code_of(lambda: main(sys.argv[1:])))
