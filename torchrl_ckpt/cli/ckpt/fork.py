"""`torchrl-ckpt ckpt fork`: start another run from a checkpoint of this one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torchrl_ckpt.checkpoint.fork import fork
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.locate import find_one
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.checkpoint.resume import refuse_to_overwrite
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.cli.ckpt.arguments import add_action, add_step, add_where
from torchrl_ckpt.cli.ckpt.printing import byte_progress
from torchrl_ckpt.launcher.start import only_one

_DESCRIPTION = """\
Verify a checkpoint and copy it into the directory of a new run, where it can be resumed from. It
appears there whole or not at all. A run that has checkpoints of its own is refused.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt fork outputs/rl_reverse outputs/bolder --step 20
  ./run_train.sh recipes/rl_reverse.toml --output-dir outputs/bolder --ckpt.resume-step 20 \\
      --max-steps 40 --trainer.optim.lr 1e-3
"""


def add_parser(actions: Any) -> None:
    parser = add_action(
        actions,
        "fork",
        _fork,
        summary="take a checkpoint over into a new run's directory",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_where(parser)
    parser.add_argument("run", metavar="RUN", type=Path, help="the new run's directory")
    add_step(parser)
    parser.add_argument(
        "--link",
        action="store_true",
        help="hard-link the files instead of copying them: no space is needed, but a fault of the "
        "disk then hits both runs",
    )


def _fork(args: argparse.Namespace) -> int:
    source = find_one(args.where, args.step)
    manifest = read_manifest(source)
    # Where the new run looks for it, if it is run from the same recipe.
    target = Layout(args.run / manifest.trainer_recipe["ckpt"]["directory"])
    refuse_to_overwrite(target)
    with byte_progress("verifying", manifest.size) as advance:
        verify(source, advance=advance)
    args.run.mkdir(parents=True, exist_ok=True)
    with only_one(args.run):
        fork(source, target, link=args.link)
    print(
        f"step {manifest.step} of {source.parent} is in {target.root}; go on there with "
        f"`--output-dir {args.run} --ckpt.resume-step {manifest.step}`"
    )
    return 0
