"""Two runs with one checkpoint directory: the second is refused, at once and afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import RECIPES, run, running, wait_for_step
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.verify import verify


@pytest.mark.slow
def test_the_second_run_is_refused_and_the_first_loses_nothing(tmp_path: Path) -> None:
    place = Layout(tmp_path / "place")
    second = tmp_path / "second"
    second.mkdir()
    sft = (
        *("sft", "@", RECIPES / "sft_reverse.toml", "--ckpt.directory", place.root),
        *("--ckpt.interval", 2, "--ckpt.keep", 1),
    )
    with running(*sft, "--output-dir", "one", cwd=tmp_path) as first:
        wait_for_step(tmp_path / "one", 2)
        at_once = run(*sft, "--output-dir", "other", cwd=second)
        assert at_once.code == 2
        assert f"in use by the run in {tmp_path}/one" in at_once.err
        assert first.poll() is None
    afterwards = run(*sft, "--output-dir", "other", cwd=second)
    assert afterwards.code == 2
    assert f"another run, the one in {tmp_path}/one" in afterwards.err
    (step,) = place.steps()  # Ctrl-C has ended the first run after a step, and saved it.
    verify(place.step(step))
