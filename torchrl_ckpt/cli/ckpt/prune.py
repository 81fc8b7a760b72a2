"""`torchrl-ckpt ckpt prune`: remove the checkpoints that no retention rule keeps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrl_ckpt.checkpoint.locate import CheckpointLocation, find, latest_attempt
from torchrl_ckpt.checkpoint.ownership import locked_for_removal
from torchrl_ckpt.checkpoint.retention import Retention, Verdict, judge, remove, retention_rules
from torchrl_ckpt.cli.ckpt.arguments import add_command, add_json, add_run, positive, whole_run
from torchrl_ckpt.cli.ckpt.printing import console, print_json, table
from torchrl_ckpt.config.ckpt import CheckpointConfig, KeepBestConfig
from torchrl_ckpt.plugin_api.errors import CheckpointFailed, CheckpointNotFound, RecipeError
from torchrl_ckpt.run.attempt import Attempt
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.run_lock import locked_run

_DESCRIPTION = """\
Show which checkpoints of a run are kept, by which rule, and remove the others. The rules are those
of the options, or, if none is given, `keep`, `keep_every` and `keep_best` in [ckpt] of the run's
recipe. The newest checkpoint, and the one that the run was resumed from, are always kept.
Removing is refused while the run is active, since it prunes by itself; `--dry-run` always works.
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
        summary="remove the checkpoints that no retention rule keeps",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_run(parser)
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIRECTORY",
        help="the checkpoint directory of RUN, if it is outside of RUN",
    )
    rules = parser.add_argument_group("rules")
    rules.add_argument("--keep", type=positive, metavar="N", help="keep the newest N")
    rules.add_argument("--keep-every", type=positive, metavar="N", help="keep multiples of N too")
    rules.add_argument(
        "--keep-best",
        metavar="METRIC",
        help="keep the best by METRIC too, a name in metrics.jsonl; needs --component and "
        "--direction",
    )
    rules.add_argument(
        "--component",
        metavar="COMPONENT",
        help="the component that wrote METRIC, such as `evaluation`",
    )
    rules.add_argument("--direction", choices=("min", "max"), help="which value is the best")
    rules.add_argument(
        "--best", type=positive, metavar="N", help="how many of the best to keep (default: 1)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be removed, and remove nothing"
    )
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    add_json(parser)


def _prune(args: argparse.Namespace) -> int:
    location = _location(args)
    run = _run(location)
    if args.dry_run:
        _show(args, judge(location.layout.steps(), _rules(args, run)))
        return 0
    with locked_run(run.root, "ckpt prune"), locked_for_removal(location.layout, run.root):
        verdicts = judge(location.layout.steps(), _rules(args, run))
        condemned = [verdict.step for verdict in verdicts if not verdict.kept]
        if args.yes or not condemned:
            _show(args, verdicts)
        elif not _confirm(args, verdicts, len(condemned)):
            print("nothing was removed")
            return 0
        removed = remove(location.layout, condemned)
    if failed := sorted(set(condemned) - set(removed)):
        raise CheckpointFailed(
            f"could not remove {_names(failed)} (the warnings say why); run `prune` again"
        )
    if removed and not args.json:
        print(f"removed {_names(removed)}")
    return 0


def _location(args: argparse.Namespace) -> CheckpointLocation:
    if args.checkpoints is None:
        return whole_run(args.run)
    return CheckpointLocation(find(args.checkpoints).layout, RunDirectory(args.run, attempt=0))


def _run(location: CheckpointLocation) -> RunDirectory:
    if location.run is None:
        raise CheckpointNotFound(
            f"{location.layout.root} is not in a run's directory, so the step that its run was "
            "resumed from, which is always kept, is unknown. Give the run's directory too: "
            f"`ckpt prune RUN --checkpoints {location.layout.root}`"
        )
    return location.run


def _rules(args: argparse.Namespace, run: RunDirectory) -> Retention:
    """The rules of the options, or else those of the run's recipe. Nothing is guessed."""
    latest = latest_attempt(run)
    ckpt = _from_options(args) or (None if latest is None else latest.ckpt)
    if ckpt is None or ckpt.keep is None:
        raise RecipeError(
            "no rule says how many checkpoints to keep: give `--keep N` (`ckpt.keep` of the run's "
            "recipe is unset)"
        )
    if latest is None:
        latest = Attempt(output_dir=run.root, number=0, max_steps=0, resume_step=None, ckpt=None)
    rules = retention_rules(latest.model_copy(update={"output_dir": run.root, "ckpt": ckpt}))
    if rules.best is not None and not rules.best.values:
        raise RecipeError(
            f"{run.metrics} has no metric {rules.best.metric!r} of that component, so the best "
            "checkpoints are unknown: check `--keep-best` and `--component`"
        )
    return rules


def _from_options(args: argparse.Namespace) -> CheckpointConfig | None:
    """The rules that the options give; None if they give none."""
    details = {"component": args.component, "direction": args.direction, "count": args.best}
    given = {name: value for name, value in details.items() if value is not None}
    best = None
    if args.keep_best is not None:
        if {"component", "direction"} - given.keys():
            raise RecipeError("`--keep-best` needs `--component` and `--direction`")
        best = KeepBestConfig(metric=args.keep_best, **given)
    elif given:
        raise RecipeError("`--component`, `--direction` and `--best` need `--keep-best`")
    if args.keep is None and args.keep_every is None and best is None:
        return None
    return CheckpointConfig(keep=args.keep, keep_every=args.keep_every, keep_best=best)


def _confirm(args: argparse.Namespace, verdicts: Sequence[Verdict], count: int) -> bool:
    """Ask the user whether to remove. Raises `RecipeError` if there is no terminal to ask on."""
    if args.json or not sys.stdin.isatty():
        raise RecipeError(
            f"{count} checkpoints would be removed: confirm with `--yes`, or look first with "
            "`--dry-run`"
        )
    _show(args, verdicts)
    return input(f"remove {count} checkpoints? [y/N] ").strip().lower() in ("y", "yes")


def _show(args: argparse.Namespace, verdicts: Sequence[Verdict]) -> None:
    if args.json:
        print_json([asdict(verdict) for verdict in verdicts])
        return
    rows = table("step", "verdict", "why", right=("step",))
    for verdict in verdicts:
        word = "keep" if verdict.kept else "remove"
        rows.add_row(str(verdict.step), word, ", ".join(verdict.reasons))
    console().print(rows)


def _names(steps: Sequence[int]) -> str:
    return ", ".join(f"step_{step}" for step in steps)
