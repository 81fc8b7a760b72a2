"""`torchrl-ckpt ckpt ls`: list the checkpoints of a run and their states."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from torchrl_ckpt.checkpoint.inventory import list_entries
from torchrl_ckpt.cli.ckpt.arguments import add_command, add_json, add_run, whole_run
from torchrl_ckpt.cli.ckpt.printing import age, console, print_json, table
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound

_DESCRIPTION = """\
List the checkpoints of a run, unfinished and quarantined ones included. Nothing is verified:
`damaged` means that the manifest cannot be read. A star marks the checkpoint that a resume from
`latest` tries first. Only the last 100 are shown, unless `--all` or `--json` is given.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt ls outputs/rl_reverse
  torchrl-ckpt ckpt ls outputs/rl_reverse --json | jq '.[] | select(.newest).step'
"""

_MAX_ROWS = 100


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "ls",
        _ls,
        summary="list the checkpoints of a run",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run(parser)
    parser.add_argument("--all", action="store_true", help="show all, however many there are")
    add_json(parser)


def _ls(args: argparse.Namespace) -> int:
    layout = whole_run(args.run).layout
    last = None if args.all or args.json else _MAX_ROWS
    entries = list_entries(layout, last=last)
    if args.json:
        print_json([asdict(entry) for entry in entries])
        return 0
    if not entries:
        raise CheckpointNotFound(f"there is no checkpoint in {layout.root}")
    rows = table("step", "age", "size", "parts", "state", right=("step", "age", "size"))
    for entry in entries:
        rows.add_row(
            f"{entry.step}{' *' if entry.newest else '  '}",
            age(time.time() - entry.created),
            decimal(entry.size),
            ", ".join(entry.parts),
            entry.state,
        )
    console().print(rows)
    if last is not None and (num_hidden := len(layout.named()) - last) > 0:
        console().print(f"and {num_hidden:,} older ones; `--all` shows them")
    return 0
