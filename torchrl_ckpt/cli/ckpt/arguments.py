"""The arguments that several of the `ckpt` commands take, with one name and one meaning each.

`RUN` is what a command reads, `TARGET` is the new directory that it writes, `--step N` selects one
checkpoint of `RUN`, and `--json` prints the result as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrl_ckpt.checkpoint.locate import CheckpointLocation, find, find_one, is_checkpoint
from torchrl_ckpt.plugin_api.errors import RecipeError

Execute = Callable[[argparse.Namespace], int]
"""Carries out a command and returns its exit code."""


def add_command(
    commands: Any, name: str, execute: Execute, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add the command `name`, which calls `execute` with its parsed arguments."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add `RUN`, for a command that looks at all checkpoints of a run."""
    help_text = "a run's directory, or its checkpoint directory"
    parser.add_argument("run", metavar="RUN", type=Path, help=help_text)


def add_run_or_checkpoint(parser: argparse.ArgumentParser, name: str = "run") -> None:
    """Add `RUN` (or `name`), for a command that looks at the checkpoint `--step` of a run."""
    help_text = "a run's directory, its checkpoint directory, or one checkpoint in it (step_N)"
    parser.add_argument(name, metavar=name.upper(), type=Path, help=help_text)


def add_target(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `TARGET`, the directory that the command writes; `what` describes it."""
    parser.add_argument("target", metavar="TARGET", type=Path, help=what)


def add_step(parser: argparse.ArgumentParser, default: str = "the newest") -> None:
    """Add `--step`. `default` says which checkpoint is taken without it."""
    help_text = f"the checkpoint of step N (default: {default})"
    parser.add_argument("--step", type=positive, metavar="N", help=help_text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def whole_run(run: Path) -> CheckpointLocation:
    """Return where the checkpoints of `RUN` are, for a command that looks at all of them.

    Raises `RecipeError` if `run` is one checkpoint, and `CheckpointNotFound`.
    """
    if is_checkpoint(run):
        raise RecipeError(f"{run} is one checkpoint: give the run's directory")
    return find(run)


def selected_checkpoint(run: Path, step: int | None) -> Path:
    """Return the directory of the checkpoint that `RUN` and `--step` select.

    Raises `RecipeError` if `run` is one checkpoint and `step` is given too, and
    `CheckpointNotFound`.
    """
    if step is not None and is_checkpoint(run):
        raise RecipeError(
            f"{run} is one checkpoint, so `--step {step}` cannot select another one: leave out "
            "`--step`, or give the run's directory"
        )
    return find_one(run, step)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    number = int(text)  # argparse reports a `ValueError` as an invalid value.
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
