"""`ckpt fork` copies a checkpoint to where a new run finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ckpt_command import CkptCommand
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.resume import choose


@pytest.mark.parametrize("flags", [[], ["--link"]])
def test_the_new_run_can_resume_from_the_copy(
    ckpt: CkptCommand, run: Path, tmp_path: Path, flags: list[str]
) -> None:
    done = ckpt("fork", run, tmp_path / "new", "--step", 4, *flags)
    assert done.exit_code == 0
    assert "--ckpt.resume-step 4" in done.out
    assert choose(Layout(tmp_path / "new/checkpoints"), "latest").step == 4
    assert ckpt("diff", run, tmp_path / "new", "--step", 4).exit_code == 0


def test_a_run_with_checkpoints_is_refused(ckpt: CkptCommand, run: Path, tmp_path: Path) -> None:
    ckpt("fork", run, tmp_path / "new", "--step", 2)
    done = ckpt("fork", run, tmp_path / "new", "--step", 4)
    assert done.exit_code == 2
    assert "already holds checkpoints" in done.err


def test_a_damaged_checkpoint_is_refused(ckpt: CkptCommand, run: Path, tmp_path: Path) -> None:
    (run / "checkpoints/step_6/trainer/state.json").write_text("?")
    done = ckpt("fork", run, tmp_path / "new")
    assert done.exit_code == 4
    assert "trainer/state.json has 1 bytes" in done.err
    assert not (tmp_path / "new").exists()
