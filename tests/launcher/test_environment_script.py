"""The environment in `.venv` is made once, however many first uses there are at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT

# Real Python, but for two calls that take minutes: it makes no environment and installs nothing.
PYTHON = f"""#!/bin/sh
case "$*" in
*"-m venv"*) for directory; do :; done
  mkdir -p "$directory/bin" && cp "$0" "$directory/bin/python" ;;
*"-m pip install"*) echo begin >>"$LOG"; sleep 0.5; echo end >>"$LOG" ;;
*"-m pip"*) ;;
*) exec {sys.executable} "$@" ;;
esac
"""

USE = 'set -euo pipefail; here="$1"; extras=""; source "$here/environment.sh"; echo ready'


def test_of_two_first_uses_one_makes_it_and_the_other_waits_and_says_so(tmp_path: Path) -> None:
    for name in ("environment.sh", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PYTHON)
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "LOG": str(log)}
    argv = ["bash", "-c", USE, "bash", str(tmp_path)]
    uses = [
        subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [use.communicate(timeout=60) for use in uses]
    assert [use.returncode for use in uses] == [0, 0, 0], results
    assert [out for out, _ in results] == ["ready\n"] * 3
    assert log.read_text().split() == ["begin", "end"]
    waiting = [err for _, err in results if err.startswith("waiting: another process")]
    assert len(waiting) == 2
