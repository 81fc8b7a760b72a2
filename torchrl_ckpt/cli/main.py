"""The command `torchrl-ckpt`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_ckpt.cli import ckpt, plugins
from torchrl_ckpt.cli.exit import exit_code_of
from torchrl_ckpt.cli.run import recipe_command
from torchrl_ckpt.plugin_api.errors import RecipeError

_DESCRIPTION = "Reinforcement learning of language models whose checkpoints can be trusted."

_RUN_HELP = """\
usage: torchrl-ckpt run RECIPE.toml [--any.key value ...]

Run a recipe: supervised fine-tuning, or reinforcement learning if it has an [orchestrator].
Every key of the recipe is a flag. See them all, with what they do and their defaults:

  sft --help     for fine-tuning
  rl --help      for reinforcement learning

  --show-config  print every value of the recipe and where it comes from, and exit
  --dry-run      check the recipe and its plugins, write resolved.json, and exit
"""


def main() -> None:
    """`torchrl-ckpt`."""
    sys.exit(exit_code_of(lambda: _main(sys.argv[1:])))


def _main(argv: Sequence[str]) -> int | None:
    # Every key of a recipe is a flag here, which is more than argparse can be told.
    if argv[:1] == ["run"]:
        return _run(argv[1:])
    parser = argparse.ArgumentParser(prog="torchrl-ckpt", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a recipe", add_help=False)
    plugins.add_parser(commands)
    ckpt.add_parser(commands)
    args = parser.parse_args(argv)
    return plugins.main(args) if args.command == "plugins" else ckpt.main(args)


def _run(argv: Sequence[str]) -> int | None:
    from torchrl_ckpt.launcher.recipe_loader import detect_command

    if not argv or argv[0] in ("-h", "--help"):
        print(_RUN_HELP, end="")
        return 0 if argv else 2
    if argv[0].startswith("-"):
        raise RecipeError(f"`torchrl-ckpt run` takes a recipe first, found {argv[0]!r}")
    files = [Path(argv[0])]
    return recipe_command(detect_command(files), argv[1:], files=files)
