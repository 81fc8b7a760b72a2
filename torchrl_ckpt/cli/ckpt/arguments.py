"""The arguments that several of the `ckpt` commands take, said in one way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[argparse.Namespace], int]


def add_action(
    actions: Any, name: str, answer: Answer, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A command of `ckpt` that `answer` carries out; returns its exit code."""
    parser = actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(answer=answer)
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    help_text = "a run's directory or its checkpoint directory"
    parser.add_argument("where", metavar="WHERE", type=Path, help=help_text)


def add_where(parser: argparse.ArgumentParser, name: str = "where") -> None:
    help_text = "a run's directory, its checkpoint directory, or one step in it"
    parser.add_argument(name, metavar=name.upper(), type=Path, help=help_text)


def add_step(parser: argparse.ArgumentParser, unset: str = "the newest") -> None:
    parser.add_argument("--step", type=positive, metavar="N", help=f"which step; unset: {unset}")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def positive(text: str) -> int:
    """A whole number from 1 up. argparse makes of the `ValueError` what it tells the user."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
