"""`torchrl-ckpt ckpt verify`: does every byte still say what was written? It needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from torchrl_ckpt.checkpoint.locate import find, find_one, is_checkpoint
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.cli.ckpt.arguments import add_action, add_json, add_step, add_where
from torchrl_ckpt.cli.ckpt.printing import byte_progress, print_json
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointNotFound

_DESCRIPTION = """\
Compare every file with the size and the xxh3-128 digest that were taken while it was written, and
name each one that is missing, changed or not listed. Exits with 0 if all is good, 4 if anything is
damaged, 3 if nothing is there.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt verify outputs/rl_reverse
  torchrl-ckpt ckpt verify outputs/rl_reverse --step 20
  torchrl-ckpt ckpt verify outputs/rl_reverse/checkpoints/step_20
"""


def add_parser(actions: Any) -> None:
    parser = add_action(
        actions,
        "verify",
        _verify,
        summary="check every byte of a run's checkpoints, or of one",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_where(parser)
    add_step(parser, unset="all of them")
    add_json(parser)


def _verify(args: argparse.Namespace) -> int:
    results = []
    for directory in _directories(args.where, args.step):
        result = _result(directory)
        results.append(result)
        if not args.json:
            print(f"{directory.name}  {result['state']}  {result['explanation']}", flush=True)
    if args.json:
        print_json(results)
    good = all(result["state"] == "good" for result in results)
    return 0 if good else CheckpointDamaged.exit_code


def _directories(where: Path, step: int | None) -> list[Path]:
    if step is not None or is_checkpoint(where):
        return [find_one(where, step)]
    layout = find(where).layout
    if not (found := list(layout.named().values())):
        raise CheckpointNotFound(f"there is no checkpoint in {layout.root}")
    return found


def _result(directory: Path) -> dict[str, str]:
    head = {"path": str(directory)}
    try:
        size = read_manifest(directory).size
        with byte_progress(directory.name, size) as advance:
            manifest = verify(directory, advance=advance)
    except CheckpointDamaged as error:
        return {**head, "state": "damaged", "explanation": str(error)}
    explanation = f"{len(manifest.files)} files, {decimal(manifest.size)}"
    return {**head, "state": "good", "explanation": explanation}
