"""No process outlives the launcher, however the launcher ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.component_processes import LivingProcesses, StartLauncher
from tests.support.waiting import wait_until
from torchrl_ckpt.plugin_api import parent_death

AGENT = """
import subprocess, sys, time
worker = '''
import pathlib, sys, time
from torchrl_ckpt.plugin_api.parent_death import die_with_parent
time.sleep(float(sys.argv[2]))
die_with_parent()
pathlib.Path(sys.argv[1], "tied").touch()
time.sleep(60)
'''
subprocess.Popen([sys.executable, "-c", worker, sys.argv[1], "{delay}"], start_new_session=True)
time.sleep(60)
"""
"""Starts a worker as torchrun does: in a session of its own, and tied to its parent only after its
imports, which take `delay` seconds."""


def test_killing_the_launcher_leaves_no_process(
    start_launcher: StartLauncher, living_processes: LivingProcesses, tmp_path: Path
) -> None:
    launcher = start_launcher(
        trainer=AGENT.format(delay=0), inference="import time; time.sleep(60)"
    )
    wait_until((tmp_path / "tied").exists)
    assert len(living_processes()) == 4  # the launcher, the agent, its worker and the server
    launcher.kill()
    wait_until(lambda: not living_processes(), seconds=2)


def test_a_worker_whose_parent_dies_before_it_is_tied_dies_too(
    start_launcher: StartLauncher, living_processes: LivingProcesses, tmp_path: Path
) -> None:
    launcher = start_launcher(trainer=AGENT.format(delay=1))
    wait_until(lambda: len(living_processes()) == 3)
    launcher.kill()
    wait_until(lambda: len(living_processes()) == 1)
    wait_until(lambda: not living_processes(), seconds=4)
    assert not (tmp_path / "tied").exists()


def test_a_process_that_no_launcher_started_can_be_tied() -> None:
    environment = {k: v for k, v in os.environ.items() if k != parent_death.ANCESTOR_VARIABLE}
    code = "from torchrl_ckpt.plugin_api.parent_death import die_with_parent; die_with_parent()"
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_a_program_that_cannot_be_started_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    tied = [sys.executable, parent_death.__file__, "/no/such/program"]
    assert subprocess.run(tied).returncode == 1
    assert "error: cannot start /no/such/program: No such file" in capfd.readouterr().err
