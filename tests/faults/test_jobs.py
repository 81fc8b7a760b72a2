"""A job of which any process is killed, and that is resumed each time, ends with the same bits as
an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.support.faults.job import Job
from tests.support.faults.job_fault import JobFault
from tests.support.faults.job_trial import JobResult, run_uninterrupted, run_with_faults

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="result_of")
def make_result_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], JobResult]:
    """Return a function that runs a job without kills.

    Both backends write the same bytes, so one run serves the jobs that differ only in that.
    """

    @cache
    def result_of_synchronous(job: Job) -> JobResult:
        return run_uninterrupted(job, tmp_path_factory.mktemp("uninterrupted") / "run")

    return lambda job: result_of_synchronous(replace(job, save_async=False))


@pytest.mark.parametrize(
    ("job", "kills"),
    [
        (Job(ranks=2), [JobFault("torchrun", "save", 0.05), JobFault("trainer", "start", 5.0)]),
        (
            Job(ranks=2, save_async=True),
            [JobFault("trainer", "save", 0.05), JobFault("launcher", "step", 0.2)],
        ),
        (
            Job(async_level=1, save_async=True),
            [JobFault("orchestrator", "save", 0.05), JobFault("inference", "step", 0.2)],
        ),
        (Job(async_level=2, ranks=2), [JobFault("orchestrator", "save", 0.2)]),
    ],
    ids=["sft", "sft, async_dcp", "rl, async_dcp", "rl, 2 ranks"],
)
def test_a_job_that_is_killed_and_resumed_ends_with_the_same_bits(
    job: Job, kills: list[JobFault], result_of: Callable[[Job], JobResult], tmp_path: Path
) -> None:
    expected = result_of(job)
    steps = [row for row in expected.rows if row["component"] == "trainer"]
    assert all(row["grad_norm"] > 0 for row in steps), "a job that learns nothing proves nothing"
    trial = run_with_faults(job, tmp_path / "killed", kills, expected)
    assert trial.violations == [], trial.faults
    assert trial.faults
