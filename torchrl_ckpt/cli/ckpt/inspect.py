"""`torchrl-ckpt ckpt inspect`: show a checkpoint's manifest and its tensors, reading no tensor."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table

from torchrl_ckpt.checkpoint.layout import MANIFEST
from torchrl_ckpt.checkpoint.manifest import Manifest, read_manifest
from torchrl_ckpt.checkpoint.stored_json import read_stored_json
from torchrl_ckpt.cli.ckpt.arguments import (
    add_command,
    add_json,
    add_run_or_checkpoint,
    add_step,
    selected_checkpoint,
)
from torchrl_ckpt.cli.ckpt.printing import age, console, print_json, table
from torchrl_ckpt.plugin_api.checkpoint_backends import TensorDescription
from torchrl_ckpt.plugin_api.plugin import Json

if TYPE_CHECKING:
    from torchrl_ckpt.inspection.stored_tensors import StoredTensors

_DESCRIPTION = """\
Show a checkpoint's progress, the main values of its recipe, versions, plugins, and the name, dtype
and shape of each tensor. Nothing is verified, and without `--values` no tensor is read; with it,
the values that are not finite (NaN and infinities) are counted. `--json` prints the whole manifest,
which contains the whole recipe.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt inspect outputs/rl_reverse
  torchrl-ckpt ckpt inspect outputs/rl_reverse --step 20 --json | jq .manifest.recipe
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "inspect",
        _inspect,
        summary="show a checkpoint's manifest and the shapes and dtypes of its tensors",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run_or_checkpoint(parser)
    add_step(parser)
    parser.add_argument(
        "--values",
        action="store_true",
        help="also read every tensor, and count the values that are not finite",
    )
    add_json(parser)


def _inspect(args: argparse.Namespace) -> int:
    directory = selected_checkpoint(args.run, args.step)
    manifest = read_manifest(directory)
    if args.json:
        stored = _stored(directory, manifest)
        tensors = [asdict(tensor) for tensor in stored.describe()]
        for name, count in _nonfinite(args, stored).items():
            next(tensor for tensor in tensors if tensor["name"] == name)["num_nonfinite"] = count
        content = read_stored_json(directory / MANIFEST)
        print_json({"path": directory, "manifest": content, "tensors": tensors})
        return 0
    screen = console()
    screen.print(directory)
    summary = table("what", "value")
    summary.show_header = False
    for row in _summary(manifest):
        summary.add_row(*row)
    screen.print(summary)
    stored = _stored(directory, manifest)
    counts = _nonfinite(args, stored)
    if args.values:
        affected = sum(count > 0 for count in counts.values())
        screen.print(f"not finite: {sum(counts.values()):,} values, in {affected:,} tensors")
    screen.print(_tensor_table(stored.describe(), counts))
    return 0


def _stored(directory: Path, manifest: Manifest) -> StoredTensors:
    from torchrl_ckpt.inspection.stored_tensors import StoredTensors

    return StoredTensors(directory, manifest)


def _nonfinite(args: argparse.Namespace, stored: StoredTensors) -> dict[str, int]:
    """Return how many values of each tensor are not finite; nothing without `--values`."""
    from torchrl_ckpt.inspection.stored_tensors import count_nonfinite

    return count_nonfinite(stored) if args.values else {}


def _summary(manifest: Manifest) -> Iterator[tuple[str, str]]:
    metadata = manifest.metadata
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(metadata["created"]))
    yield "step", str(manifest.step)
    yield "created", f"{created}, {age(time.time() - metadata['created'])} ago"
    yield "size", f"{decimal(manifest.size)} in {len(manifest.files)} files"
    yield "parts", ", ".join(manifest.parts)
    yield "progress", _pairs(metadata["progress"])
    yield "world size", str(metadata["world_size"])
    yield "versions", _pairs(metadata["versions"])
    for kind, plugin in metadata["plugins"].items():
        yield kind, f"{plugin['name']}, of {plugin['distribution']} {plugin['version']}"
    yield from _recipe_in_short(manifest.trainer_recipe)


def _recipe_in_short(trainer: Json) -> Iterator[tuple[str, str]]:
    """The values that runs usually differ in: model, loss, data, optimiser, steps, seed, ranks."""
    for name in ("model", "loss", "data", "optim", "scheduler"):
        if isinstance(trainer.get(name), dict):
            yield f"recipe.{name}", _pairs(_given(trainer[name]))
    yield (
        "recipe",
        _pairs({name: trainer[name] for name in ("max_steps", "seed", "ranks") if name in trainer}),
    )


def _given(section: Json) -> Json:
    """Leave out values that are unset or empty."""
    return {key: value for key, value in section.items() if value not in (None, [], {})}


def _pairs(values: Json) -> str:
    return ", ".join(f"{key} {_inline(value)}" for key, value in values.items())


def _inline(value: Json) -> str:
    return f"({_pairs(_given(value))})" if isinstance(value, dict) else str(value)


def _tensor_table(tensors: Sequence[TensorDescription], nonfinite: Mapping[str, int]) -> Table:
    numbers = ("elements", "not finite") if nonfinite else ("elements",)
    rows = table(f"{len(tensors)} tensors", "dtype", "shape", *numbers, right=numbers)
    for tensor in tensors:
        elements = math.prod(tensor.shape)
        counts = [f"{nonfinite[tensor.name]:,}"] if nonfinite else []
        rows.add_row(tensor.name, tensor.dtype, str(list(tensor.shape)), f"{elements:,}", *counts)
    return rows
