"""`torchrl-ckpt ckpt` in the test's own process, and what it printed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from torchrl_ckpt.cli.main import main


@dataclass(frozen=True)
class CommandResult:
    """What a command printed, and its exit code."""

    exit_code: int
    out: str
    err: str


class CkptCommand:
    """Runs `torchrl-ckpt ckpt` with the arguments of a call."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> CommandResult:
        self._capsys.readouterr()
        try:
            exit_code = main(["ckpt", *map(str, arguments)])
        except SystemExit as end:  # argparse: `--help`, or arguments that it rejects.
            exit_code = end.code if isinstance(end.code, int) else 0
        return CommandResult(exit_code, *self._capsys.readouterr())
