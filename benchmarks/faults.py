"""The long run of the fault harness (`tests/support/faults`), with a table for docs/reliability.md:

    python -m benchmarks.faults --backend dcp --rows rows.jsonl
    python -m benchmarks.faults --backend async_dcp --ranks 2 --jobs 0 --rows rows.jsonl
    python -m benchmarks.faults --table rows.jsonl

Needs strace, and root for the small disks. A part whose number is 0 is left out. With `--rows` each
result is kept in a file, and what is there already is not measured again, so a run can be split
into several and resumed. Every violation of an invariant is printed; the exit code is 1 if there is
one.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from benchmarks.fault_rows import Row, Rows, table
from tests.support.faults import small_disk, strace
from tests.support.faults.damage import BitSelection, files_of, unnoticed_cuts, unnoticed_flips
from tests.support.faults.invariants import Invariants
from tests.support.faults.job import Job
from tests.support.faults.job_fault import EFFECTS, Effect, draw_faults
from tests.support.faults.job_trial import JobResult, run_uninterrupted, run_with_faults
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import Scenario, restart_scenarios, save_scenarios
from tests.support.faults.scenario_trials import Errno, ScenarioTrials, Trial
from tests.support.faults.shortage import NAMES, SHORTAGES
from tests.support.faults.strace import OPENS, FaultPoint
from tests.support.one_rank_world import one_rank_world
from tests.support.toy_training import SaveOptions
from torchrl_ckpt.checkpoint.layout import Layout

_THREADS = (1, 3)
_ERRORS: tuple[Errno, ...] = ("ENOSPC", "EIO", "EMFILE")
_MAX_WHOLE_BYTES = 8192  # Every bit is flipped in files up to this size.
_DISK = ("96m", 20_000)  # What a run is put on that is to fill it.
_JOBS = (
    Job(ranks=1),
    Job(async_level=0),
    Job(async_level=1),
    Job(ranks=2),
    Job(async_level=2, ranks=2),
    Job(ranks=2, save_async=True),
    Job(async_level=1, save_async=True),
)
_EFFECTS: dict[Effect, str] = {
    "kill": "SIGKILL of a job's process",
    "pause": "SIGSTOP of a job's process, then SIGCONT",
    "stop": "SIGSTOP of a job's process, for good",
    **{shortage: f"{name}, in a job" for shortage, name in NAMES.items()},
}


class FaultBenchmark:
    """The parts of the run, and what they share."""

    def __init__(
        self,
        saver: Saver,
        invariants: Invariants,
        directory: Path,
        rows: Rows,
        arguments: argparse.Namespace,
    ) -> None:
        self._saver = saver
        self._invariants = invariants
        self._directory = directory
        self._rows = rows
        self._backend = arguments.backend
        self._ranks = arguments.ranks
        self._seed = arguments.seed
        self._number = itertools.count()
        self._uninterrupted: Callable[[Job], JobResult] = cache(self._run_uninterrupted)

    def kills(self, count: int) -> None:
        """Kill the job at every fault point of a restart, and `count` times in all saves."""
        if count == 0:
            return
        if self._ranks == 1:  # The launcher prepares a restart, before there are any ranks.
            for restart in restart_scenarios(self._backend):
                self._try("SIGKILL", restart, ScenarioTrials.kill, None)
        self._try_all("SIGKILL", ScenarioTrials.kill, count)

    def worker_kills(self, count: int) -> None:
        """Kill a worker of the trainer alone, `count` times in all saves."""
        if self._backend == "async_dcp":
            self._try_all(
                "SIGKILL of a writer or committer alone",
                ScenarioTrials.kill_worker,
                count,
                among=lambda point: point.process >= self._ranks,
            )

    def errors(self, count: int) -> None:
        """Let single calls fail, `count` times over all errors and saves."""
        for error, share in zip(_ERRORS, _shares(count, len(_ERRORS)), strict=True):
            self._try_all(
                f"{error} of one call",
                partial(ScenarioTrials.fail, error=error),
                share,
                among=(lambda point: point.name in OPENS) if error == "EMFILE" else None,
            )

    def pauses(self, count: int) -> None:
        """Stop a process and let it continue, `count` times in all saves."""
        self._try_all("SIGSTOP, then SIGCONT", ScenarioTrials.pause, count)

    def shortages(self, count: int) -> None:
        """Let disk, inodes, descriptors and memory run out, `count` times in all saves."""
        for shortage, share in zip(SHORTAGES, _shares(count, len(SHORTAGES)), strict=True):
            run_short = partial(ScenarioTrials.run_short, shortage=shortage)
            self._try_all(NAMES[shortage], run_short, share, on_small_disk=True)

    def damage(self, count: int) -> None:
        """Flip bits, `count` in each large file, and truncate, lengthen and remove files."""
        if count == 0:
            return
        selection = BitSelection(_MAX_WHOLE_BYTES, num_sampled=count)
        run = self._new_directory()
        outcome = self._saver.save(run, SaveOptions(self._backend), [1])
        assert outcome.exit_code == 0, outcome.error
        checkpoint = Layout(run / "checkpoints").step(1)
        files = files_of(checkpoint)

        def flip() -> tuple[int, list[str]]:
            flips = [bit for file in files for bit in unnoticed_flips(checkpoint, file, selection)]
            return sum(len(selection.bits(file)) for file in files), flips

        def cut() -> tuple[int, list[str]]:
            cuts = [cut for file in files for cut in unnoticed_cuts(checkpoint, file)]
            return 6 * len(files), cuts

        self._measure("flipped bits", "every file of a checkpoint", flip)
        self._measure("files cut, lengthened or gone", "every file of a checkpoint", cut)

    def jobs(self, count: int, effects: Sequence[Effect]) -> None:
        """Run `count` whole jobs for each effect; it hits each of them one to four times."""
        for effect in effects:
            for number in range(count):
                job = _JOBS[number % len(_JOBS)]
                where = f"job {number + 1}: {job}"
                attempt = partial(self._try_job, job, number, effect)
                self._measure(_EFFECTS[effect], where, attempt, setting=_setting_of(job))

    def _try_job(self, job: Job, number: int, effect: Effect) -> tuple[int, list[str]]:
        count = random.Random(f"{self._seed} {number}").randint(1, 4)
        faults = draw_faults(job, count, seed=self._seed * 1000 + number, effect=effect)
        disk = self._new_directory()
        mounted: AbstractContextManager[object] = nullcontext()
        if any(fault.needs_small_disk for fault in faults):
            mounted = small_disk.small_disk(disk, *_DISK)
        with mounted:
            trial = run_with_faults(job, disk / "run", faults, self._uninterrupted(job))
        _show(f"  {'; '.join(trial.faults) or 'the job was faster'}")
        violations = [f"{text} (after {trial.faults})" for text in trial.violations]
        return len(trial.faults), violations

    def _run_uninterrupted(self, job: Job) -> JobResult:
        return run_uninterrupted(job, self._new_directory() / "run")

    def _try_all(
        self,
        fault: str,
        inject: Callable[[ScenarioTrials, FaultPoint], Trial],
        count: int,
        *,
        among: Callable[[FaultPoint], bool] | None = None,
        on_small_disk: bool = False,
    ) -> None:
        """Make `count` trials over all saves, at the fault points that `among` admits."""
        if count == 0:
            return
        scenarios = [
            replace(scenario, name=f"{scenario}, {_count(threads, 'writer thread')}")
            for threads in _THREADS
            for scenario in save_scenarios(self._backend, {"threads": threads}, self._ranks)
        ]
        for scenario, share in zip(scenarios, _shares(count, len(scenarios)), strict=True):
            self._try(fault, scenario, inject, share, among=among, on_small_disk=on_small_disk)

    def _try(
        self,
        fault: str,
        scenario: Scenario,
        inject: Callable[[ScenarioTrials, FaultPoint], Trial],
        count: int | None,
        *,
        among: Callable[[FaultPoint], bool] | None = None,
        on_small_disk: bool = False,
    ) -> None:
        """Make `count` trials of a scenario, or one at each of its fault points."""

        def run() -> tuple[int, list[str]]:
            directory = self._new_directory()
            mounted: AbstractContextManager[object] = nullcontext()
            if on_small_disk:
                mounted = small_disk.small_disk(directory, *_DISK)
            with mounted:
                trials = ScenarioTrials(scenario, self._saver, self._invariants, directory)
                points = list(filter(among, trials.fault_points))
                if count is not None:
                    points = self._sample(points, count)
                done = [inject(trials, point) for point in points]
            num_reached = sum(trial.reached for trial in done)
            return num_reached, [str(trial) for trial in done if trial.violations]

        if count != 0:
            self._measure(fault, str(scenario), run)

    def _measure(
        self,
        fault: str,
        where: str,
        run: Callable[[], tuple[int, list[str]]],
        *,
        setting: str | None = None,
    ) -> None:
        setting = setting or f"{self._backend}, {_count(self._ranks, 'rank')}"

        def measured() -> Row:
            began = time.monotonic()
            cases, violations = run()
            return Row(fault, setting, where, cases, violations, time.monotonic() - began)

        row = self._rows.measure(fault, setting, where, measured)
        if row is None:
            return
        text = f"{fault} ({setting}; {where}): {row.cases}, {len(row.violations)} violations"
        _show(f"{text}, {row.seconds:.0f} s")
        print(*row.violations, sep="\n", end="\n" if row.violations else "", flush=True)

    def _sample(self, points: Sequence[FaultPoint], count: int) -> list[FaultPoint]:
        """Return `count` fault points or a few more: those of `strace.sample`, then random ones."""
        first = strace.sample(points, count)
        rest = [point for point in points if point not in set(first)]
        generator = random.Random(self._seed)
        return [*first, *generator.sample(rest, max(0, min(count - len(first), len(rest))))]

    def _new_directory(self) -> Path:
        return self._directory / str(next(self._number))


def main() -> int:
    arguments = _parse()
    if arguments.table:
        rows = [row for path in arguments.table for row in Rows(path).rows]
        return _conclude(rows)
    if reason := strace.unavailable() or small_disk.unavailable():
        print(reason)
        return 2
    # The restarts of the invariants warn of the damage that was done on purpose.
    logging.disable()
    kept = Rows(arguments.rows)
    with tempfile.TemporaryDirectory() as name, one_rank_world() as world:
        directory = Path(name).resolve()
        saver = Saver()
        invariants = Invariants(world, directory / "expected")
        benchmark = FaultBenchmark(saver, invariants, directory, kept, arguments)
        benchmark.kills(arguments.kills)
        benchmark.worker_kills(arguments.deaths)
        benchmark.errors(arguments.errors)
        benchmark.pauses(arguments.pauses)
        benchmark.shortages(arguments.shortages)
        benchmark.damage(arguments.flips)
        benchmark.jobs(arguments.jobs, arguments.effects)
        saver.close()
    return _conclude(kept.rows)


def _conclude(rows: Sequence[Row]) -> int:
    print("\n".join(table(rows)))
    violations = [f"{row.fault}, {row.where}: {case}" for row in rows for case in row.violations]
    print(*violations, sep="\n")
    return 1 if violations else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {
        "kills": (250, "kills of all processes of a save at once"),
        "deaths": (60, "kills of a writer or committer alone (async_dcp only)"),
        "errors": (60, "single calls that fail"),
        "pauses": (20, "processes that are stopped and continue"),
        "shortages": (40, "saves during which disk, inodes, descriptors or memory run out"),
        "flips": (2000, "bits flipped in a large file"),
        "jobs": (20, "whole jobs for each of `--effects`"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--effects", nargs="+", choices=EFFECTS, default=["kill"], help="what hits the whole jobs"
    )
    parser.add_argument("--backend", default="dcp", help="the checkpoint backend")
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2), help="of the saves")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    parser.add_argument("--rows", type=Path, help="keep the results in this file")
    parser.add_argument("--table", type=Path, nargs="+", help="only show the results of files")
    return parser.parse_args()


def _shares(count: int, among: int) -> list[int]:
    return [count // among + (index < count % among) for index in range(among)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _setting_of(job: Job) -> str:
    return f"{'async_dcp' if job.save_async else 'dcp'}, {_count(job.ranks, 'rank')}"


def _show(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
