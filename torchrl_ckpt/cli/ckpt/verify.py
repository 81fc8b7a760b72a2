"""`torchrl-ckpt ckpt verify`: check every byte of a run's checkpoints. It does not import torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from torchrl_ckpt.checkpoint.locate import find, is_checkpoint
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.verify import strays, verify
from torchrl_ckpt.cli.ckpt.arguments import (
    add_command,
    add_json,
    add_run_or_checkpoint,
    add_step,
    selected_checkpoint,
)
from torchrl_ckpt.cli.ckpt.printing import byte_progress, print_json
from torchrl_ckpt.plugin_api.errors import CheckpointDamaged, CheckpointMismatch, CheckpointNotFound

_DESCRIPTION = """\
Compare every file of a checkpoint with the size and the xxh3-128 digest that were recorded while it
was written. Name each file that is missing or has changed; a link, a FIFO or a device in its place
is refused. Other files in a checkpoint are a warning. Exits with 0 if all
checkpoints are good, 4 if one is damaged, and else 3 if there is none or one has the format of
another version of torchrl-ckpt.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt verify outputs/rl_reverse
  torchrl-ckpt ckpt verify outputs/rl_reverse --step 20
  torchrl-ckpt ckpt verify outputs/rl_reverse/checkpoints/step_20
"""

_EXIT_CODES = {
    "good": 0,
    "other format": CheckpointMismatch.exit_code,
    "damaged": CheckpointDamaged.exit_code,
}


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "verify",
        _verify,
        summary="check every byte of a run's checkpoints, or of one",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run_or_checkpoint(parser)
    add_step(parser, default="all")
    add_json(parser)


def _verify(args: argparse.Namespace) -> int:
    results = []
    for directory in _directories(args.run, args.step):
        result = _result(directory)
        results.append(result)
        if not args.json:
            print(f"{directory.name}  {result['state']}  {result['explanation']}", flush=True)
            for warning in result["warnings"]:
                print(f"{directory.name}  warning: {warning}", flush=True)
    if args.json:
        print_json(results)
    return max(_EXIT_CODES[result["state"]] for result in results)


def _directories(run: Path, step: int | None) -> list[Path]:
    if step is not None or is_checkpoint(run):
        return [selected_checkpoint(run, step)]
    layout = find(run).layout
    if not (found := list(layout.named().values())):
        raise CheckpointNotFound(f"there is no checkpoint in {layout.root}")
    return found


def _result(directory: Path) -> dict[str, Any]:
    warnings: list[str] = []
    try:
        size = read_manifest(directory).size
        with byte_progress(directory.name, size) as advance:
            manifest = verify(directory, advance=advance)
    except CheckpointDamaged as error:
        state, explanation = "damaged", str(error)
    except CheckpointMismatch as error:
        state, explanation = "other format", str(error)
    else:
        state, explanation = "good", f"{len(manifest.files)} files, {decimal(manifest.size)}"
        warnings = [f"{name!r} is not part of it" for name in strays(directory, manifest)]
    return {
        "path": str(directory),
        "state": state,
        "explanation": explanation,
        "warnings": warnings,
    }
