"""`torchrl-ckpt ckpt`: look at checkpoints. It never imports torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from torchrl_ckpt.checkpoint.layout import MANIFEST, Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.errors import CheckpointDamaged, CheckpointNotFound


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("ckpt", help="list and verify checkpoints")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    ls = actions.add_parser("ls", help="the checkpoints of a run")
    ls.add_argument("where", type=Path, help="a run's directory or its checkpoint directory")
    check = actions.add_parser("verify", help="check every byte of a run's checkpoints, or of one")
    check.add_argument(
        "where", type=Path, help="a run, its checkpoint directory, or one step in it"
    )


def main(args: argparse.Namespace) -> int:
    return _ls(args.where) if args.action == "ls" else _verify(args.where)


def _layout(where: Path) -> Layout:
    """Of a run's directory or of the checkpoint directory itself."""
    if not where.is_dir():
        raise CheckpointNotFound(f"{where} is not a directory")
    inside = Layout(where / "checkpoints")
    return inside if inside.root.is_dir() else Layout(where)


def _ls(where: Path) -> int:
    layout = _layout(where)
    table = Table("step", "age", "size", "parts", box=None, pad_edge=False)
    for step in layout.steps():
        manifest = read_manifest(layout.step(step))
        age = time.time() - manifest.about["created"]
        table.add_row(str(step), _age(age), decimal(manifest.size), ", ".join(manifest.parts))
    Console().print(table if table.row_count else f"no checkpoints in {layout.root}")
    return 0


def _verify(where: Path) -> int:
    if (where / MANIFEST).is_file():
        directories = [where]
    else:
        layout = _layout(where)
        directories = [layout.step(step) for step in layout.steps()]
    if not directories:
        raise CheckpointNotFound(f"there is no checkpoint in {where}")
    bad = 0
    for directory in directories:
        try:
            manifest = verify(directory)
        except CheckpointDamaged as error:
            bad += 1
            print(f"{directory.name}  DAMAGED  {error}")
        else:
            print(f"{directory.name}  good  {len(manifest.files)} files, {decimal(manifest.size)}")
    return CheckpointDamaged.exit_code if bad else 0


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
