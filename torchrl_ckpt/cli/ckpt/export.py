"""`torchrl-ckpt ckpt export`: a checkpoint's model as a Hugging Face directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torchrl_ckpt.checkpoint.locate import find_one
from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.cli.ckpt.arguments import add_action, add_step, add_where
from torchrl_ckpt.cli.ckpt.printing import byte_progress

_DESCRIPTION = """\
Verify a checkpoint and write its model, with configuration and tokenizer, to a new directory that
`AutoModelForCausalLM.from_pretrained` loads. The model plugin of the checkpoint's recipe does it,
so what that recipe names (the tokenizer's directory, say) has to be there. An existing directory is
refused.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt export outputs/rl_reverse exported
  torchrl-ckpt ckpt export outputs/rl_reverse exported --step 20
"""


def add_parser(actions: Any) -> None:
    parser = add_action(
        actions,
        "export",
        _export,
        summary="write a checkpoint's model as a Hugging Face directory",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_where(parser)
    parser.add_argument("target", metavar="TARGET", type=Path, help="the directory to make")
    add_step(parser)


def _export(args: argparse.Namespace) -> int:
    from torchrl_ckpt.inspection.export import export

    checkpoint = find_one(args.where, args.step)
    with byte_progress("verifying", read_manifest(checkpoint).size) as advance:
        step = export(checkpoint, args.target, advance=advance)
    print(f"the model of step {step} is in {args.target}")
    return 0
