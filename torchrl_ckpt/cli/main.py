"""The command `torchrl-ckpt`: `run`, `plugins` and `ckpt`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from torchrl_ckpt.cli import plugins
from torchrl_ckpt.cli.ckpt import main as ckpt
from torchrl_ckpt.cli.exit import exit_code_of
from torchrl_ckpt.cli.run import run

_DESCRIPTION = (
    "Reinforcement learning and fine-tuning of language models, with checkpoints that can be "
    "trusted."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `torchrl-ckpt` with the arguments `argv` (default: the process's); return its exit code.

    Raises `SystemExit` for `--help` and for arguments that argparse rejects.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _execute(arguments))


def _execute(argv: Sequence[str]) -> int | None:
    # `run` has a flag for each key of a recipe, which argparse cannot express.
    if argv[:1] == ["run"]:
        return run(argv[1:])
    parser = argparse.ArgumentParser(prog="torchrl-ckpt", description=_DESCRIPTION)
    installed = f"torchrl-ckpt {version('torchrl-ckpt')}"
    parser.add_argument("--version", action="version", version=installed)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a recipe", add_help=False)
    plugins.add_parser(commands)
    ckpt.add_parser(commands)
    args = parser.parse_args(argv)
    return args.execute(args)
