"""`torchrl-ckpt ckpt diff`: show which state differs between two checkpoints, and by how much."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import groupby
from math import isnan
from typing import TYPE_CHECKING, Any

from rich.console import Console

from torchrl_ckpt.checkpoint.manifest import read_manifest
from torchrl_ckpt.cli.ckpt.arguments import (
    add_command,
    add_json,
    add_run_or_checkpoint,
    add_step,
    selected_checkpoint,
)
from torchrl_ckpt.cli.ckpt.printing import byte_progress, console, print_json, table
from torchrl_ckpt.plugin_api.plugin import Json

if TYPE_CHECKING:
    from torchrl_ckpt.inspection.differences import TensorDifference, ValueDifference

_MAX_ROWS = 40
_MAX_VALUE_LENGTH = 32


_DESCRIPTION = """\
Verify two checkpoints and compare their state bit by bit: tensors, optimiser and scheduler,
progress, random generators, position in the data, carried rollouts. The time of the save, the
recipe, and the number of ranks that the tensors were spread over are not compared. Which start made
a carried batch, and how long that took, is shown but does not count. Exits with 0 if the state is
equal, 1 if it differs.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt diff outputs/a outputs/b --step 20
  torchrl-ckpt ckpt diff outputs/a/checkpoints/step_10 outputs/a/checkpoints/step_20
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "diff",
        _diff,
        summary="show which state differs between two checkpoints, and by how much",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run_or_checkpoint(parser, "run_a")
    add_run_or_checkpoint(parser, "run_b")
    add_step(parser, default="the newest of each")
    add_json(parser)


def _diff(args: argparse.Namespace) -> int:
    from torchrl_ckpt.inspection.differences import compare

    a, b = (selected_checkpoint(run, args.step) for run in (args.run_a, args.run_b))
    size = read_manifest(a).size + read_manifest(b).size
    with byte_progress("verifying", size) as advance:
        differences = compare(a, b, advance=advance)
    if args.json:
        print_json({"a": a, "b": b, **asdict(differences)})
    else:
        screen = console()
        screen.print(f"a: {a}\nb: {b}")
        _print_tensors(screen, differences.tensors)
        for where, values in groupby(differences.values, key=lambda value: value.where):
            _print_values(screen, where, list(values))
        if differences.information:
            screen.print("about the starts that made them (these do not count as differences):")
        for where, values in groupby(differences.information, key=lambda value: value.where):
            _print_values(screen, where, list(values))
        if not differences:
            screen.print("The states are bitwise identical.")
    return 1 if differences else 0


def _print_tensors(screen: Console, differences: list[TensorDifference]) -> None:
    if not differences:
        return
    numbers = ("differing elements", "max abs", "relative")
    rows = table(f"{len(differences)} tensors", *numbers, right=numbers)
    worst_first = sorted(differences, key=lambda t: (isnan(t.relative), t.relative), reverse=True)
    for tensor in worst_first[:_MAX_ROWS]:
        share = f"{tensor.num_different:,} of {tensor.num_elements:,}"
        rows.add_row(tensor.name, share, f"{tensor.max_abs:.3g}", f"{tensor.relative:.3g}")
    screen.print(rows)
    _print_rest(screen, len(differences))


def _print_values(screen: Console, where: str, differences: list[ValueDifference]) -> None:
    rows = table(where, "a", "b")
    for value in differences[:_MAX_ROWS]:
        rows.add_row(value.key, _short(value.a), _short(value.b))
    screen.print(rows)
    _print_rest(screen, len(differences))


def _print_rest(screen: Console, count: int) -> None:
    if count > _MAX_ROWS:
        screen.print(f"... and {count - _MAX_ROWS} more; --json has them all")


def _short(value: Json) -> str:
    text = str(value)
    if len(text) <= _MAX_VALUE_LENGTH:
        return text
    return f"{text[:_MAX_VALUE_LENGTH]}… ({len(text)} characters)"
