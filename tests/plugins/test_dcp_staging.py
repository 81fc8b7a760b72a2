"""No update changes what a save has still to copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.jobs.commands import RECIPES, digests
from torchrl_ckpt.trainer.state import Progress, TrainingState

STEPS = 4

# A trainer as a job starts it, but the copy of its state begins late.
SLOWLY_STAGED = """
import os, sys, time
from pathlib import Path
from torchrl_ckpt_dcp import async_dcp_backend as async_backend
from torchrl_ckpt.launcher.start import begin
from torchrl_ckpt.launcher.recipe_loader import load_recipe
from torchrl_ckpt.config.settings import to_json
from torchrl_ckpt.trainer.main import train

copy = async_backend._copy

def copy_late(*tensors):
    time.sleep(float(sys.argv[1]))
    copy(*tensors)

async_backend._copy = copy_late
recipe = load_recipe("sft", sys.argv[2:]).recipe
with begin(recipe.output_dir, recipe.ckpt, recipe.max_steps, to_json(recipe)) as attempt:
    attempt.run.logs.mkdir(parents=True, exist_ok=True)
    about = {"recipe": to_json(recipe), "plugins": {}}
    train(recipe.model_copy(update={"attempt": attempt.run.attempt}), about)
"""


def train(run: Path, delay: float) -> None:
    flags = f"--max-steps {STEPS} --ckpt.interval 1 --ckpt.save-async --data.batch-size 4"
    words = ["@", str(RECIPES / "sft_reverse.toml"), *flags.split(), "--output-dir", str(run)]
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SLOWLY_STAGED, str(delay), *words, "--threads", "1"],
        env={**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_update_waits_for_the_copy_of_the_state(tmp_path: Path) -> None:
    train(tmp_path / "prompt", 0.0)
    train(tmp_path / "late", 0.7)
    for step in range(1, STEPS + 1):
        saved = f"checkpoints/step_{step}"
        assert digests(tmp_path / "late" / saved) == digests(tmp_path / "prompt" / saved)


def test_buffers_that_a_forward_pass_changes_are_known() -> None:
    def changes(*layers: torch.nn.Module) -> bool:
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        source: Any = None
        return TrainingState(model, optimizer, scheduler, source, Progress()).changes_in_forward

    assert not changes(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert changes(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
