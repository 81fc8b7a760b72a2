"""Two jobs at once on one thing: each pair ends with one refused or both right, and nothing lost.

Two first uses of `.venv` are in `tests/launcher/test_environment_script.py`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import RECIPES, Finished, digests, metrics, running, start
from tests.support.commands import free_port as find_port
from tests.support.faults.job import MAX_STEPS, Job
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.verify import verify

STEPS = [2, 4, MAX_STEPS]


def at_once(*commands: list[str], cwd: Path) -> list[Finished]:
    """Start all commands at the same moment, and wait for them."""
    processes = [start(tuple(argv), cwd, {}, subprocess.PIPE) for argv in commands]
    ended = [process.communicate(timeout=300) for process in processes]
    return [
        Finished(process.returncode, *output)
        for process, output in zip(processes, ended, strict=True)
    ]


def one_refused(pair: list[Finished]) -> tuple[Finished, Finished]:
    """Return the job that was done and the one that was refused; there must be one of each."""
    done, refused = sorted(pair, key=lambda finished: finished.code)
    assert (done.code, refused.code) == (0, 2), [job.out[-2000:] + job.err for job in pair]
    assert "error: " in refused.err
    assert "Traceback" not in refused.err
    return done, refused


def assert_whole(layout: Layout) -> None:
    assert layout.steps() == STEPS
    for step in STEPS:
        verify(layout.step(step))
    assert layout.leftovers() == []


def test_of_two_jobs_in_one_output_directory_one_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = Job().argv(run)
    _, refused = one_refused(at_once(argv, argv, cwd=tmp_path))
    assert str(run.name) in refused.err
    assert_whole(Layout(run / "checkpoints"))
    assert [key for key in metrics(run) if key[0] == "trainer"] == [
        ("trainer", step) for step in range(1, MAX_STEPS + 1)
    ]


@pytest.mark.slow
def test_of_two_jobs_with_one_checkpoint_directory_one_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    pair = [
        [*Job().argv(tmp_path / name), "--ckpt.directory", str(shared)] for name in ("one", "two")
    ]
    _, refused = one_refused(at_once(*pair, cwd=tmp_path))
    assert "shared" in refused.err
    assert_whole(Layout(shared))


@pytest.mark.slow
def test_of_two_jobs_with_one_server_each_trains_on_its_own_policies_or_stops(
    tmp_path: Path,
) -> None:
    """The server serves one policy at a time; no job may take the other's tokens for its own."""
    port = find_port()
    server = ("inference", "@", RECIPES / "reverse/infer.toml", "--port", port)
    pair = [
        [
            *Job(async_level=1).argv(tmp_path / name),
            *("--orchestrator.client.base-url", f"http://127.0.0.1:{port}", "--seed", seed),
        ]
        for name, seed in (("one", "1"), ("two", "2"))
    ]
    with running(*server, "--output-dir", tmp_path / "served", cwd=tmp_path):
        ended = at_once(*pair, cwd=tmp_path)
        [alone] = at_once([*pair[0], "--output-dir", str(tmp_path / "alone")], cwd=tmp_path)
    assert alone.code == 0
    for name, finished in zip(("one", "two"), ended, strict=True):
        layout = Layout(tmp_path / name / "checkpoints")
        for step in layout.steps():
            verify(layout.step(step))
            assert_own_rollouts(layout.step(step))
        if finished.code == 0:
            assert layout.steps() == STEPS
            if name == "one":
                by_itself = Layout(tmp_path / "alone/checkpoints")
                assert digests(layout.step(MAX_STEPS)) == digests(by_itself.step(MAX_STEPS))
        else:
            assert "error: " in finished.err
            assert "Traceback" not in finished.out + finished.err


def assert_own_rollouts(checkpoint: Path) -> None:
    """All carried rollouts of a batch name the same verified weights, of one policy."""
    for path in checkpoint.glob("orchestrator/rollouts/step_*/batch.json"):
        batch = json.loads(path.read_text())
        assert len(set(batch["weights_ids"])) == 1
        assert set(batch["policy_versions"]) == {batch["policy_version"]}
