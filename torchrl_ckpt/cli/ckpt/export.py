"""`torchrl-ckpt ckpt export`: write a checkpoint's model as a Hugging Face directory."""

from __future__ import annotations

import argparse
from typing import Any

from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.cli.ckpt.arguments import (
    add_command,
    add_json,
    add_run_or_checkpoint,
    add_step,
    add_target,
    selected_checkpoint,
)
from torchrl_ckpt.cli.ckpt.printing import byte_progress, print_json

_DESCRIPTION = """\
Verify a checkpoint and write its model, with configuration and tokenizer, to a new directory that
`AutoModelForCausalLM.from_pretrained` loads. The model plugin named in the checkpoint's recipe does
the export, so the files that the recipe names (the tokenizer's directory, for example) must still
be there.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt export outputs/rl_reverse exported
  torchrl-ckpt ckpt export outputs/rl_reverse exported_20 --step 20
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        summary="write a checkpoint's model as a Hugging Face directory",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run_or_checkpoint(parser)
    add_target(parser, "the directory to write the model to; it must not exist")
    add_step(parser)
    add_json(parser)


def _export(args: argparse.Namespace) -> int:
    from torchrl_ckpt.inspection.export import export

    checkpoint = selected_checkpoint(args.run, args.step)
    with byte_progress("verifying", read_manifest(checkpoint).size) as advance:
        step = export(checkpoint, args.target, advance=advance)
    if args.json:
        print_json({"path": checkpoint, "step": step, "target": args.target})
    else:
        print(f"the model of step {step} is in {args.target}")
    return 0
