"""Trials of whole jobs, whose processes are killed at random moments."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.faults.job import MAX_STEPS, Job
from tests.support.faults.job_attempt import JobAttempt, JobKill
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.run import metrics

_MAX_START_DELAY_SECONDS = 10.0
_MAX_DELAY_SECONDS = 0.3


def draw_kills(job: Job, count: int, seed: int) -> list[JobKill]:
    """Draw kills at random; every third comes just after the beginning of a save."""
    generator = random.Random(f"{job} {seed}")
    kills = []
    for number in range(count):
        moment: Any = generator.choice(["start", "step", "save"]) if number % 3 else "save"
        longest = _MAX_START_DELAY_SECONDS if moment == "start" else _MAX_DELAY_SECONDS
        victim = generator.choice(job.victims)
        kills.append(JobKill(victim, moment, generator.uniform(0, longest)))
    return kills


@dataclass
class JobTrial:
    """The kills that a job went through, and the invariants that were violated."""

    job: Job
    kills: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JobResult:
    """What a job left behind: digests of its state by file, and its rows of metrics."""

    digests: dict[str, str]
    rows: list[dict[str, Any]]


def run_uninterrupted(job: Job, output_dir: Path) -> JobResult:
    """Run `job` to its end. Raises `RuntimeError` if it fails."""
    attempt = JobAttempt(job.argv(output_dir), output_dir)
    code = attempt.wait()
    if code != 0:
        raise RuntimeError(f"{job} failed without a fault:\n{attempt.output()}")
    return _result(output_dir)


def run_with_kills(
    job: Job, output_dir: Path, kills: Sequence[JobKill], expected: JobResult
) -> JobTrial:
    """Start and resume `job` until it is finished, with one kill in each of the first attempts, and
    compare its result with that of an uninterrupted run."""
    trial = JobTrial(job)
    layout = Layout(output_dir / "checkpoints")
    remaining = list(kills)
    while MAX_STEPS not in layout.steps():
        before = layout.steps()
        resume = ["--ckpt.resume-step", "latest"] if before else []
        attempt = JobAttempt([*job.argv(output_dir), *resume], output_dir)
        killed = attempt.kill(remaining.pop(0)) if remaining else None
        if killed is not None:
            trial.kills.append(killed)
        code = attempt.wait()
        if left := attempt.left_behind():
            trial.violations.append(f"processes were left behind: {left}")
        if code != 0 and killed is None:
            trial.violations.append(f"an attempt failed without a kill:\n{attempt.output()}")
            return trial
        trial.violations += _checkpoint_violations(layout, before)
    trial.violations += _differences(_result(output_dir), expected)
    return trial


def _checkpoint_violations(layout: Layout, before: Sequence[int]) -> Iterator[str]:
    """Check that no step of `before` is lost and that every listed step is good."""
    steps = layout.steps()
    yield from (f"step {step} is lost" for step in before if step not in steps)
    for step in steps:
        try:
            verify(layout.step(step))
        except UserError as error:
            yield f"step {step} is listed and bad: {error}"


def _result(output_dir: Path) -> JobResult:
    directory = Layout(output_dir / "checkpoints").step(MAX_STEPS)
    digests = _digests(verify(directory))
    weights = output_dir / "weights" / f"step_{MAX_STEPS}"
    for file in sorted(weights.glob("*.safetensors")):
        digests[file.name] = digest_file(file)[1]
    rows = [row for row in metrics.read(output_dir / "metrics.jsonl") if _is_compared(row)]
    rows.sort(key=lambda row: (row["component"], row["step"]))
    return JobResult(digests, [_without_times(row) for row in rows])


def _digests(manifest: Manifest) -> dict[str, str]:
    """Return the digests of files of state. `batch.json` and the orchestrator's `part.json` hold
    times."""
    varying = ("batch.json", "orchestrator/part.json", "request.json")
    return {file.path: file.digest for file in manifest.files if not file.path.endswith(varying)}


def _is_compared(row: dict[str, Any]) -> bool:
    return row["component"] in ("trainer", "orchestrator")


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if name != "time" and not name.endswith(("_seconds", "_per_second"))
    }


def _differences(result: JobResult, expected: JobResult) -> Iterator[str]:
    # A job that was killed between the last commit and the export has no final weights.
    for name, digest in expected.digests.items():
        found = result.digests.get(name)
        if found != digest and not (found is None and "/" not in name):
            yield f"{name} differs from the uninterrupted run"
    numbers = [(row["component"], row["step"]) for row in result.rows]
    if numbers != [(row["component"], row["step"]) for row in expected.rows]:
        yield f"the rows in metrics.jsonl are {numbers}"
    else:
        pairs = zip(result.rows, expected.rows, strict=True)
        yield from (f"{row} instead of {right}" for row, right in pairs if row != right)
