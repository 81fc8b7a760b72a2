"""`torchrl-ckpt ckpt prune`: remove what a rule does not keep, and say why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torchrl_ckpt.checkpoint.locate import CheckpointLocation, find, latest_attempt
from torchrl_ckpt.checkpoint.retention import Retention, Verdict, judge, remove, retention_rules
from torchrl_ckpt.cli.ckpt.arguments import add_command, add_json, add_run, positive
from torchrl_ckpt.cli.ckpt.printing import console, print_json, table
from torchrl_ckpt.config.ckpt import CheckpointConfig, KeepBestConfig
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, CheckpointNotFound, RecipeError
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory, locked_run

_DESCRIPTION = """\
Show which checkpoints of a run are kept and which are not, by which rule, and remove the latter.
The rules are those of the flags, or, where none is given, `ckpt.keep`, `keep_every` and `keep_best`
of the run's recipe. The newest checkpoint and the one that the run was resumed from always stay.
Refused while the run is going on: it prunes by itself.
"""

_EXAMPLES = """\
  torchrl-ckpt ckpt prune outputs/rl_reverse --keep 3 --keep-every 100 --dry-run
  torchrl-ckpt ckpt prune outputs/rl_reverse --keep 1 --yes --keep-best reward/mean \\
      --component evaluation --direction max
  torchrl-ckpt ckpt prune outputs/rl_reverse --dry-run    # by the recipe's rules
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "prune",
        _prune,
        summary="remove the checkpoints that a rule does not keep",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run(parser)
    rules = parser.add_argument_group("rules")
    rules.add_argument("--keep", type=positive, metavar="N", help="the newest N")
    rules.add_argument("--keep-every", type=positive, metavar="N", help="the multiples of N too")
    rules.add_argument(
        "--keep-best", metavar="METRIC", help="the best by this name in metrics.jsonl too"
    )
    rules.add_argument("--component", metavar="C", help="whose metric it is, such as `evaluation`")
    rules.add_argument("--direction", choices=("min", "max"), help="which is better")
    rules.add_argument("--best", type=positive, metavar="N", help="how many of the best; unset: 1")
    parser.add_argument("--dry-run", action="store_true", help="only show it")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_json(parser)


def _prune(args: argparse.Namespace) -> int:
    place = find(args.run)
    run = _run(place)
    if args.dry_run:
        _show(args, judge(place.layout.steps(), _rules(args, run)))
        return 0
    with locked_run(run.root):
        verdicts = judge(place.layout.steps(), _rules(args, run))
        condemned = [verdict.step for verdict in verdicts if not verdict.kept]
        if args.yes or not condemned:
            _show(args, verdicts)
        else:
            _ask(args, verdicts, len(condemned))
        removed = remove(place.layout, condemned)
    if left := sorted(set(condemned) - set(removed)):
        raise CheckpointFailed(f"could not remove {_listed(left)}; prune again to try once more")
    if removed and not args.json:
        print(f"removed {_listed(removed)}")
    return 0


def _run(place: CheckpointLocation) -> RunDirectory:
    if place.run is None:
        raise CheckpointNotFound(
            f"{place.layout.root} is in no run's directory: without the run's recipe nobody knows "
            "which step it was resumed from. Give the run's directory"
        )
    return place.run


def _rules(args: argparse.Namespace, run: RunDirectory) -> Retention:
    """By the flags, or else by the recipe; nothing of it is guessed."""
    latest = latest_attempt(run)
    ckpt = _from_flags(args) or (None if latest is None else latest.ckpt)
    if ckpt is None or ckpt.keep is None:
        raise RecipeError(
            "nothing says how many checkpoints to keep: give `--keep N` (the recipe's `ckpt.keep` "
            "is unset as well)"
        )
    if latest is None:
        latest = Attempt(output_dir=run.root, number=0, max_steps=0, resume_step=None, ckpt=None)
    rules = retention_rules(latest.model_copy(update={"output_dir": run.root, "ckpt": ckpt}))
    if rules.best is not None and not rules.best.values:
        raise RecipeError(
            f"{run.metrics} has no {rules.best.metric!r}, so nobody can tell which checkpoint is "
            "best; `--component` says whose metric it is"
        )
    return rules


def _from_flags(args: argparse.Namespace) -> CheckpointConfig | None:
    """What the flags say to keep; None where they say nothing."""
    details = {"component": args.component, "direction": args.direction, "count": args.best}
    given = {name: value for name, value in details.items() if value is not None}
    best = None
    if args.keep_best is not None:
        if {"component", "direction"} - given.keys():
            raise RecipeError("`--keep-best` needs `--component` and `--direction`")
        best = KeepBestConfig(metric=args.keep_best, **given)
    elif given:
        raise RecipeError("`--component`, `--direction` and `--best` belong to `--keep-best`")
    if args.keep is None and args.keep_every is None and best is None:
        return None
    return CheckpointConfig(keep=args.keep, keep_every=args.keep_every, keep_best=best)


def _ask(args: argparse.Namespace, verdicts: Sequence[Verdict], count: int) -> None:
    """Returns where the user agrees."""
    if args.json or not sys.stdin.isatty():
        raise RecipeError(f"{count} checkpoints would go: say so with `--yes`, or see `--dry-run`")
    _show(args, verdicts)
    if input(f"remove {count} checkpoints? [y/N] ").strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


def _show(args: argparse.Namespace, verdicts: Sequence[Verdict]) -> None:
    if args.json:
        print_json([asdict(verdict) for verdict in verdicts])
        return
    rows = table("step", "verdict", "why", right=("step",))
    for verdict in verdicts:
        word = "keep" if verdict.kept else "remove"
        rows.add_row(str(verdict.step), word, ", ".join(verdict.reasons))
    console().print(rows)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"step_{step}" for step in steps)
