"""Somebody else's plugins work as ours do, by `pip install` alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, ROOT, digests, run, succeed

PROJECT = ROOT / "tests/third_party/acme_plugins"
FLAGS = ("--loss", "acme_z_loss", "--ckpt.backend", "acme_whole_file")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the project is installed; outside it, it is not."""
    site = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    how = ("--no-deps", "--no-build-isolation", "--target", site)
    subprocess.run([*pip, *how, PROJECT], check=True)
    return {"PYTHONPATH": str(site)}


def test_they_are_listed_train_save_and_resume(installed: dict[str, str], tmp_path: Path) -> None:
    listed = succeed("torchrl-ckpt", "plugins", "list", cwd=tmp_path, env=installed).out
    assert "acme_z_loss" in listed
    assert "acme_whole_file" in listed

    sft = ("sft", "@", RECIPES / "sft_reverse.toml", *FLAGS)
    for directory, *steps in (("whole", 4), ("split", 2, 4)):
        for number, step in enumerate(steps):
            resume = ("--ckpt.resume-step", steps[number - 1]) if number else ("--ckpt",)
            more = ("--max-steps", step, "--output-dir", directory, *resume)
            succeed(*sft, *more, cwd=tmp_path, env=installed)
    whole, split = (digests(tmp_path / name / "checkpoints/step_4") for name in ("whole", "split"))
    assert whole == split
    assert "trainer/tensors/acme.safetensors" in whole


def test_when_they_are_removed_the_error_says_what_is_missing(tmp_path: Path) -> None:
    finished = run("sft", "@", RECIPES / "sft_reverse.toml", *FLAGS, cwd=tmp_path)
    assert finished.code == 2
    assert "acme_" in finished.err
    assert "pip install" in finished.err
    assert "Traceback" not in finished.err
