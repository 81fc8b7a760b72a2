"""Two ranks train both recipes, and a checkpoint passes between one rank and two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import RECIPES, digests, metrics, run, succeed
from torchrl_ckpt.checkpoint.layout import Layout

SFT = ("sft", "@", RECIPES / "sft_reverse.toml")


def test_two_ranks_do_what_one_does_up_to_rounding(sft_run: Path, tmp_path: Path) -> None:
    succeed(*SFT, "--max-steps", 4, "--ranks", 2, cwd=tmp_path)
    one, two = metrics(sft_run), metrics(tmp_path / "outputs/sft_reverse")
    for step in range(1, 5):
        row = two["trainer", step]
        assert row["loss"] == pytest.approx(one["trainer", step]["loss"], rel=1e-4)
        assert row["tokens"] == one["trainer", step]["tokens"]


@pytest.mark.slow
def test_two_ranks_split_equal_two_ranks_whole(tmp_path: Path) -> None:
    ranks = ("--ranks", 2, "--max-steps")
    keep = ("--ckpt.interval", 1, "--ckpt.keep", 2)
    succeed(*SFT, *ranks, 4, *keep, "--output-dir", "whole", cwd=tmp_path)
    assert Layout(tmp_path / "whole/checkpoints").steps() == [3, 4]
    succeed(*SFT, *ranks, 2, "--ckpt", "--output-dir", "split", cwd=tmp_path)
    resume = ("--ckpt.resume-step", 2, "--output-dir", "split")
    succeed(*SFT, *ranks, 4, *resume, cwd=tmp_path)
    whole, split = (digests(tmp_path / name / "checkpoints/step_4") for name in ("whole", "split"))
    assert whole == split


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_checkpoint_passes_between_world_sizes(tmp_path: Path, before: int, after: int) -> None:
    succeed(*SFT, "--max-steps", 4, "--ckpt", "--output-dir", "same", cwd=tmp_path)
    succeed(*SFT, "--max-steps", 2, "--ckpt", "--ranks", before, cwd=tmp_path)
    # One process reads what `before` ranks wrote: the very weights that those had.
    run_directory = tmp_path / "outputs/sft_reverse"
    succeed("torchrl-ckpt", "ckpt", "export", run_directory, "exported", cwd=tmp_path)
    name = "model.safetensors"
    gathered = run_directory / "weights/step_2" / name
    assert (tmp_path / "exported" / name).read_bytes() == gathered.read_bytes()
    resume = ("--ckpt.resume-step", 2, "--ranks", after)
    finished = run(*SFT, "--max-steps", 4, *resume, cwd=tmp_path)
    assert finished.code == 0, finished.err
    assert f"`ranks` was {before} and is {after} now" in finished.out
    same, moved = metrics(tmp_path / "same"), metrics(tmp_path / "outputs/sft_reverse")
    for step in (3, 4):
        # The same samples, so the same tokens; the loss to rounding.
        assert moved["trainer", step]["tokens"] == same["trainer", step]["tokens"]
        expected = same["trainer", step]["loss"]
        assert moved["trainer", step]["loss"] == pytest.approx(expected, rel=1e-4)


def test_two_ranks_train_the_rl_recipe(sft_run: Path, workplace: Path) -> None:
    flags = ("--max-steps", 2, "--trainer.ranks", 2, "--orchestrator.prompts-per-step", 16)
    output = workplace / "rl_two_ranks"
    recipe = RECIPES / "rl_reverse.toml"
    succeed("rl", "@", recipe, *flags, "--output-dir", output, cwd=workplace)
    rows = metrics(output)
    assert [step for name, step in rows if name == "trainer"] == [1, 2]
    assert rows["trainer", 1]["samples"] == 16 * 8
    assert rows["trainer", 1]["logprob_difference"] < 1e-5
