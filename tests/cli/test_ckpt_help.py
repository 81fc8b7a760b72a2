"""`ckpt --help` says what a script has to know."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("command", ["ls", "inspect", "verify", "diff", "prune", "export", "fork"])
def test_every_command_has_examples(ckpt, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        ckpt(command, "--help")
    assert f"  torchrl-ckpt ckpt {command} outputs/" in capsys.readouterr().out


def test_the_exit_codes_are_listed(ckpt, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ckpt("--help")
    listed = capsys.readouterr().out.partition("exit codes:")[2]
    assert [line.split()[0] for line in listed.strip().splitlines()] == [*"01234", "130"]
