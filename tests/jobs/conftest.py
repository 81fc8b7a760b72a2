"""The runs that several tests look at, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, ROOT, Finished, succeed


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory, with its `outputs`."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="session")
def sft_run(workplace: Path) -> Path:
    """40 steps of fine-tuning in one go."""
    succeed("sft", "@", RECIPES / "sft_reverse.toml", "--ckpt", cwd=workplace)
    return workplace / "outputs/sft_reverse"


@pytest.fixture(scope="session")
def main_job(workplace: Path, sft_run: Path) -> tuple[Path, Finished]:
    """The main job, 20 steps in one go on top of `sft_run`, with a checkpoint every other step."""
    finished = succeed(
        ROOT / "run_train.sh",
        RECIPES / "rl_reverse.toml",
        *("--ckpt.interval", 2, "--ckpt.keep", 3),
        cwd=workplace,
    )
    return workplace / "outputs/rl_reverse", finished


@pytest.fixture(scope="session")
def rl_run(workplace: Path, sft_run: Path) -> Callable[[int], tuple[tuple[object, ...], Path]]:
    """By async level: a smaller main job, as a command, and its 20 steps in one go."""

    @cache
    def at(async_level: int) -> tuple[tuple[object, ...], Path]:
        rl = (
            *("rl", "@", RECIPES / "rl_reverse.toml", "--ckpt"),
            *("--orchestrator.async-level", async_level, "--orchestrator.prompts-per-step", 32),
        )
        whole = workplace / f"async_{async_level}_whole"
        succeed(*rl, "--max-steps", 20, "--output-dir", whole, cwd=workplace)
        return rl, whole

    return at
