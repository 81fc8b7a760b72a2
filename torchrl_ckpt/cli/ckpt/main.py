"""The parser of `torchrl-ckpt ckpt`, and who answers each of its commands."""

from __future__ import annotations

import argparse
from typing import Any

from torchrl_ckpt.cli.ckpt import diff, export, fork, inspect, ls, prune, verify

_ABOUT = """\
Look at checkpoints and look after them. WHERE is a run's directory, its checkpoint directory
(`ckpt.directory` of its recipe), or, where one checkpoint is meant, one step in it. No command
changes a committed checkpoint; only `prune` removes any.
"""

_EXIT_CODES = """\
exit codes:
  0    done, and nothing is wrong
  1    `diff`: the two differ
  2    a mistake in the command line, or what would be overwritten or guessed at
  3    there is no such checkpoint
  4    a checkpoint is damaged, or could not be read, written or removed
  130  interrupted
"""


def add_parser(commands: Any) -> None:
    """Add `ckpt` and its commands."""
    parser = commands.add_parser(
        "ckpt",
        help="list, inspect, verify, compare, prune, export and fork checkpoints",
        description=_ABOUT,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    for action in (ls, inspect, verify, diff, prune, export, fork):
        action.add_parser(actions)


def main(args: argparse.Namespace) -> int:
    """Do what the parsed `args` say and return the exit code."""
    return args.answer(args)
