"""`torchrl-ckpt ckpt fork`: copy a checkpoint into a new run, which can resume from it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torchrl_ckpt.checkpoint.fork import fork
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.resume import refuse_to_overwrite
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.cli.ckpt.arguments import (
    add_command,
    add_json,
    add_run_or_checkpoint,
    add_step,
    add_target,
    selected_checkpoint,
)
from torchrl_ckpt.cli.ckpt.printing import byte_progress, print_json
from torchrl_ckpt.config.ckpt import CheckpointConfig
from torchrl_ckpt.plugin_api.errors import OutsideDirectory
from torchrl_ckpt.plugin_api.untrusted_files import is_below
from torchrl_ckpt.run.run_lock import locked_run

_DESCRIPTION = """\
Verify a checkpoint and copy it into the directory of a new run, which can resume from it. The copy
appears whole or not at all. A run that already has checkpoints is refused.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt fork outputs/rl_reverse outputs/bolder --step 20
  ./run_train.sh recipes/rl_reverse.toml --output-dir outputs/bolder --ckpt.resume-step 20 \\
      --max-steps 40 --trainer.optim.lr 1e-3
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "fork",
        _fork,
        summary="copy a checkpoint into a new run, which can resume from it",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run_or_checkpoint(parser)
    add_target(parser, "the new run's directory; it must hold no checkpoint")
    add_step(parser)
    parser.add_argument(
        "--link",
        action="store_true",
        help="hard-link the files instead of copying them: this takes no space, but a fault of the "
        "disk damages both runs",
    )
    add_json(parser)


def _fork(args: argparse.Namespace) -> int:
    source = selected_checkpoint(args.run, args.step)
    manifest = read_manifest(source)
    layout, option = _layout(args.target, manifest.trainer_recipe["ckpt"]["directory"])
    refuse_to_overwrite(layout)
    with byte_progress("verifying", manifest.size) as advance:
        verify(source, advance=advance)
    with locked_run(args.target, "ckpt fork"):
        copy = fork(source, layout, link=args.link)
    if args.json:
        result = {"path": source, "step": manifest.step, "target": args.target, "copy": copy}
        print_json(result)
    else:
        print(
            f"step {manifest.step} of {source.parent} is in {layout.root}; resume from it with "
            f"`--output-dir {args.target}{option} --ckpt.resume-step {manifest.step}`"
        )
    return 0


def _layout(target: Path, directory: str) -> tuple[Layout, str]:
    """The new run's checkpoint directory, and the option that the run needs to find it there.

    The recipe in the manifest calls it `directory`, and the new run looks there if its recipe is
    the same; but nothing is written outside of `target` because a manifest says so.
    """
    layout = Layout(target / directory)
    if is_below(target, layout.root):
        return layout, ""
    layout = Layout.of_run(target, CheckpointConfig())
    if not is_below(target, layout.root):
        raise OutsideDirectory(f"{layout.root} leads out of {target}; fork into a new directory")
    return layout, f" --ckpt.directory {CheckpointConfig().directory}"
