"""A job whose processes are killed at random, and that is resumed each time, ends with the bits of
one that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.job_trial import Job, draw_strikes, run_through, run_uninterrupted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("job", "kills"),
    [
        (Job(ranks=2), 2),
        (Job(ranks=2, save_async=True), 2),
        (Job(async_level=0), 1),
        (Job(async_level=1, save_async=True), 2),
        (Job(async_level=2, ranks=2, save_async=True), 1),
    ],
    ids=str,
)
def test_a_job_that_was_killed_again_and_again_ends_the_same(
    job: Job, kills: int, tmp_path: Path
) -> None:
    expected = run_uninterrupted(job, tmp_path / "uninterrupted")
    learned = [row for row in expected.rows if row["component"] == "trainer"]
    assert all(row["grad_norm"] > 0 for row in learned), "a job that learns nothing proves nothing"
    ordeal = run_through(job, tmp_path / "killed", draw_strikes(job, kills, seed=0), expected)
    assert ordeal.broken == [], ordeal.kills
    assert ordeal.kills
