"""Trials of whole jobs, which faults hit at random moments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.faults.job import MAX_STEPS, Job
from tests.support.faults.job_attempt import JobAttempt
from tests.support.faults.job_fault import JobFault
from torchrl_ckpt.checkpoint.layout import STATE, Layout
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.rollout_part import ORCHESTRATOR
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.run import metrics

STALL_SECONDS = 15.0
"""`launcher.stall_timeout` of the jobs that have a process stopped."""

PUBLISH_SECONDS = 20
"""`publish_timeout` of the jobs that have a process run out of descriptors."""

_MORE_STEPS = 2


@dataclass
class JobTrial:
    """The faults that a job went through, and the invariants that were violated."""

    job: Job
    faults: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JobResult:
    """What a job left behind: digests of its state by file, and its rows of metrics."""

    output_dir: Path
    digests: dict[str, str]
    rows: list[dict[str, Any]]


def run_uninterrupted(job: Job, output_dir: Path) -> JobResult:
    """Run `job` to its end. Raises `RuntimeError` if it fails."""
    attempt = JobAttempt(job.argv(output_dir), output_dir, _logs(output_dir))
    code = attempt.wait()
    if code != 0:
        raise RuntimeError(f"{job} failed without a fault:\n{attempt.output()}")
    return _result(output_dir)


def run_with_faults(
    job: Job, output_dir: Path, faults: Sequence[JobFault], expected: JobResult
) -> JobTrial:
    """Start and resume `job` until it is finished, with one fault in each of the first attempts,
    and compare its result with that of an uninterrupted run.

    `output_dir` is on a small disk of its own where a fault is of the disk.
    """
    trial = JobTrial(job)
    layout = Layout(output_dir / "checkpoints")
    remaining = list(faults)
    while MAX_STEPS not in layout.steps():
        before = layout.steps()
        fault = remaining.pop(0) if remaining else None
        argv = job.argv(output_dir)
        argv += ["--ckpt.resume-step", "latest"] if before else []
        if fault is not None and fault.effect == "stop":
            argv += ["--launcher.stall-timeout", str(STALL_SECONDS)]
        if fault is not None and fault.effect == "descriptors":
            # Nothing gives the process any: it tries for so long, and then ends with that reason.
            for prefix in ("",) if job.async_level is None else ("trainer.", "orchestrator."):
                argv += [f"--{prefix}publish-timeout", str(PUBLISH_SECONDS)]
        attempt = JobAttempt(argv, output_dir, _logs(output_dir))
        injected = attempt.inject(fault) if fault else None
        code = attempt.wait()
        if left := attempt.left_behind():
            trial.violations.append(f"processes were left behind: {left}")
        if injected is not None:
            trial.faults.append(injected)
            if code > 0 and "error: " not in attempt.output():
                trial.violations.append(f"ended without a reason:\n{attempt.output()}")
        if code != 0 and not (injected and fault and fault.may_fail_the_attempt):
            trial.violations.append(f"an attempt failed without need:\n{attempt.output()}")
            return trial
        trial.violations += _checkpoint_violations(layout, before)
    may_lack_rows = any(fault.loses_rows for fault in faults)
    if _carries_policies(output_dir):
        # A run that leaves without its orchestrator saves, in place of batches, the policies that
        # generate them. Whether that is the same shows when both go on.
        copy = _logs(output_dir) / "uninterrupted"
        shutil.copytree(expected.output_dir, copy)
        result, expected = _go_on(job, output_dir), _go_on(job, copy)
    else:
        result = _result(output_dir)
    trial.violations += _differences(result, expected, may_lack_rows)
    return trial


def _carries_policies(output_dir: Path) -> bool:
    state = Layout(output_dir / "checkpoints").step(MAX_STEPS) / ORCHESTRATOR / STATE
    return state.exists() and "policies" in json.loads(state.read_text())


def _go_on(job: Job, output_dir: Path) -> JobResult:
    """Resume a finished `job` for a few steps more."""
    steps = MAX_STEPS + _MORE_STEPS
    argv = [*job.argv(output_dir, steps), "--ckpt.resume-step", str(MAX_STEPS)]
    attempt = JobAttempt(argv, output_dir, _logs(output_dir))
    if attempt.wait() != 0:
        raise RuntimeError(f"{job} cannot go on:\n{attempt.output()}")
    return _result(output_dir, steps)


def _logs(output_dir: Path) -> Path:
    """Make the directory of what a job prints: beside its disk, which may be full."""
    logs = output_dir.parent.with_name(f"{output_dir.parent.name}.logs")
    logs.mkdir(exist_ok=True)
    return logs


def _checkpoint_violations(layout: Layout, before: Sequence[int]) -> Iterator[str]:
    """Check that no step of `before` is lost and that every listed step is good."""
    steps = layout.steps()
    yield from (f"step {step} is lost" for step in before if step not in steps)
    for step in steps:
        try:
            verify(layout.step(step))
        except UserError as error:
            yield f"step {step} is listed and bad: {error}"


def _result(output_dir: Path, step: int = MAX_STEPS) -> JobResult:
    directory = Layout(output_dir / "checkpoints").step(step)
    digests = _digests(verify(directory))
    weights = output_dir / "weights" / f"step_{step}"
    for file in sorted(weights.glob("*.safetensors")):
        digests[file.name] = digest_file(file)[1]
    rows = [row for row in metrics.read(output_dir / "metrics.jsonl") if _is_compared(row)]
    rows.sort(key=lambda row: (row["component"], row["step"]))
    return JobResult(output_dir, digests, [_without_times(row) for row in rows])


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


def _differences(
    result: JobResult, expected: JobResult, may_lack_rows: bool = False
) -> Iterator[str]:
    # A job that was killed between the last commit and the export has no final weights.
    for name, digest in expected.digests.items():
        found = result.digests.get(name)
        if found != digest and not (found is None and "/" not in name):
            yield f"{name} differs from the uninterrupted run"
    found_rows, expected_rows = _by_step(result), _by_step(expected)
    if len(found_rows) < len(result.rows) or not found_rows.keys() <= expected_rows.keys():
        yield f"metrics.jsonl has rows twice or that do not belong there: {list(found_rows)}"
    elif len(found_rows) < len(expected_rows) and not may_lack_rows:
        yield f"metrics.jsonl lacks rows: {expected_rows.keys() - found_rows.keys()}"
    for key, row in found_rows.items():
        if row != (right := expected_rows.get(key)):
            yield f"{row} instead of {right}"


def _by_step(result: JobResult) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["component"], row["step"]): row for row in result.rows}
