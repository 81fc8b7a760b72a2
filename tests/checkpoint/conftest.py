"""A checkpoint directory, and a way to commit checkpoints to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.plain_checkpoint import Save, commit_plain
from torchrl_ckpt.checkpoint.layout import Layout


@pytest.fixture(name="layout")
def make_layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "checkpoints")


@pytest.fixture(name="save")
def make_save(layout: Layout) -> Save:
    return partial(commit_plain, layout)
