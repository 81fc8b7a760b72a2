"""The parser of `torchrl-ckpt ckpt`, with a parser for each of its commands."""

from __future__ import annotations

import argparse
from typing import Any

from torchrl_ckpt.cli.ckpt import diff, export, fork, inspect, ls, prune, verify

_DESCRIPTION = """\
Inspect and manage the checkpoints of a run. No command changes a committed checkpoint; only `prune`
removes any.

RUN is a run's directory (`output_dir` in its recipe) or its checkpoint directory
(`ckpt.directory`). Commands that take `--step N` also accept one checkpoint (.../step_N) as RUN.
"""

_EXIT_CODES = """\
exit codes:
  0    success; `verify` found no damage, `diff` no difference
  1    `diff`: the two checkpoints differ
  2    a wrong argument, an unusable plugin, an active run, or an overwrite
  3    there is no such checkpoint, or it has the format of another version
  4    a checkpoint is damaged, or cannot be read, written or removed
  130  interrupted
"""

COMMANDS = (ls, inspect, verify, diff, prune, export, fork)
"""The modules of the commands, in the order of `--help`; each has `add_parser`."""


def add_parser(commands: Any) -> None:
    """Add `ckpt` and its commands to the subparsers `commands`.

    Each sets `execute` in the parsed arguments: a function that takes them, carries out the command
    and returns the exit code.
    """
    parser = commands.add_parser(
        "ckpt",
        help="list, inspect, verify, compare, prune, export and fork checkpoints",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ckpt_commands = parser.add_subparsers(dest="ckpt_command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(ckpt_commands)
