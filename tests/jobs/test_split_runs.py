"""A run that is split ends with the same bits as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, Finished, digests, metrics, running, succeed


def assert_same_end(whole: Path, split: Path, step: int) -> None:
    """Weights, optimiser, scheduler, counters, RNG, batches under way, every step's numbers."""
    model = f"weights/step_{step}/model.safetensors"
    assert (split / model).read_bytes() == (whole / model).read_bytes()
    checkpoint = f"checkpoints/step_{step}"
    assert digests(split / checkpoint) == digests(whole / checkpoint)
    diff = succeed("torchrl-ckpt", "ckpt", "diff", whole, split, "--step", step, cwd=whole)
    assert "The states are bitwise identical." in diff.out
    expected, found = metrics(whole), metrics(split)
    # The first half ended with an evaluation, and saved other steps than the whole run.
    additional = {("evaluation", step // 2), *(key for key in found if key[0] == "checkpoint")}
    assert {key: found[key] for key in found.keys() - additional} == {
        key: row for key, row in expected.items() if key[0] != "checkpoint"
    }


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), id="dcp"),
        pytest.param(("--ckpt.save-async",), id="async_dcp", marks=pytest.mark.slow),
    ],
)
def test_sft_20_and_20_steps_equal_40(how: tuple[str, ...], sft_run: Path, tmp_path: Path) -> None:
    sft = ("sft", "@", RECIPES / "sft_reverse.toml", *how)
    succeed(*sft, "--max-steps", 20, "--ckpt", cwd=tmp_path)
    succeed(*sft, "--max-steps", 40, "--ckpt.resume-step", 20, cwd=tmp_path)
    assert_same_end(sft_run, tmp_path / "outputs/sft_reverse", 40)


def test_rl_10_and_10_steps_equal_20_with_a_server_that_stays_up(
    main_job: tuple[Path, Finished], workplace: Path
) -> None:
    rl = (
        *("rl", "--trainer", "@", RECIPES / "reverse/train.toml"),
        *("--orchestrator", "@", RECIPES / "reverse/orch.toml"),
    )
    with running("inference", "@", RECIPES / "reverse/infer.toml", cwd=workplace) as server:
        succeed(*rl, "--max-steps", 10, "--ckpt", cwd=workplace)
        succeed(*rl, "--max-steps", 20, "--ckpt.resume-step", 10, cwd=workplace)
        assert server.poll() is None
    assert_same_end(main_job[0], workplace / "outputs/rl", 20)


@pytest.mark.parametrize("async_level", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rl_10_and_10_steps_equal_20(async_level: int, rl_run: Callable, workplace: Path) -> None:
    rl, whole = rl_run(async_level)
    split = workplace / f"async_{async_level}_split"
    succeed(*rl, "--max-steps", 10, "--output-dir", split, cwd=workplace)
    # Either backend reads what the other wrote, and both write the same bytes.
    resume = ("--max-steps", 20, "--ckpt.resume-step", 10, "--ckpt.save-async")
    succeed(*rl, *resume, "--output-dir", split, cwd=workplace)
    assert_same_end(whole, split, 20)


@pytest.mark.slow
def test_a_fork_goes_on_as_the_run_it_came_from(sft_run: Path, tmp_path: Path) -> None:
    sft = ("sft", "@", RECIPES / "sft_reverse.toml")
    succeed(*sft, "--max-steps", 4, "--ckpt.interval", 2, "--output-dir", "one", cwd=tmp_path)
    fork = ("--ckpt.resume-from", "one", "--ckpt.resume-step", 2, "--output-dir", "other")
    succeed(*sft, "--max-steps", 4, *fork, cwd=tmp_path)
    one, other = tmp_path / "one", tmp_path / "other"
    assert digests(other / "checkpoints/step_4") == digests(one / "checkpoints/step_4")
    assert digests(other / "checkpoints/step_2") == digests(one / "checkpoints/step_2")
