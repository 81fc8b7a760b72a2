"""The long run of the fault harness (`tests/support/faults`), with a table for docs/reliability.md:

    python -m benchmarks.faults --kills 1000 --faults 200 --jobs 20

Needs strace. A part whose number is 0 is left out. Every violation of an invariant is printed; the
exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.support.faults import strace
from tests.support.faults.damage import BitSelection, files_of, unnoticed_cuts, unnoticed_flips
from tests.support.faults.invariants import Invariants
from tests.support.faults.job import Job
from tests.support.faults.job_trial import (
    JobResult,
    draw_kills,
    run_uninterrupted,
    run_with_kills,
)
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import Scenario, restart_scenarios, save_scenarios
from tests.support.faults.scenario_trials import Errno, ScenarioTrials, Trial
from tests.support.faults.strace import FaultPoint
from tests.support.one_rank_world import one_rank_world
from tests.support.toy_training import SaveOptions
from torchrl_ckpt.checkpoint.layout import Layout

_THREADS = (1, 3)
_ERRORS: tuple[Errno, ...] = ("ENOSPC", "EIO")
_MAX_WHOLE_BYTES = 8192  # Every bit is flipped in files up to this size.
_JOBS = (
    Job(ranks=1),
    Job(async_level=0),
    Job(async_level=1),
    Job(ranks=2),
    Job(async_level=2, ranks=2),
    Job(ranks=2, save_async=True),
    Job(async_level=1, save_async=True),
)


@dataclass
class Row:
    """A line of the table. `violations` describes every violation of an invariant."""

    what: str
    cases: int
    violations: list[str]
    seconds: float


class FaultBenchmark:
    """The parts of the run, and what they share."""

    def __init__(
        self, saver: Saver, invariants: Invariants, directory: Path, backend: str, seed: int
    ) -> None:
        self._saver = saver
        self._invariants = invariants
        self._directory = directory
        self._backend = backend
        self._seed = seed
        self._number = itertools.count()

    def kills(self, count: int) -> Iterator[Row]:
        """Kill the job at every fault point of a restart, and `count` times in all saves."""
        if count == 0:
            return
        for restart in restart_scenarios(self._backend):
            yield self._row(f"kills in {restart}", restart, ScenarioTrials.kill, None)
        scenarios = self._scenarios()
        for scenario, share in zip(scenarios, _shares(count, len(scenarios)), strict=True):
            yield self._row(f"kills in {scenario}", scenario, ScenarioTrials.kill, share)

    def worker_kills(self, count: int) -> Iterator[Row]:
        """Kill a worker of the trainer alone, `count` times in all saves."""
        if count == 0:
            return
        scenarios = self._scenarios()
        for scenario, share in zip(scenarios, _shares(count, len(scenarios)), strict=True):
            yield self._row(
                f"kills of a worker alone in {scenario}",
                scenario,
                ScenarioTrials.kill_worker,
                share,
                workers_only=True,
            )

    def faults(self, count: int) -> Iterator[Row]:
        """Let calls fail, `count` times over all errors and scenarios."""
        if count == 0:
            return
        kinds = list(itertools.product(self._scenarios(), _ERRORS))
        for (scenario, error), share in zip(kinds, _shares(count, len(kinds)), strict=True):
            fail = partial(ScenarioTrials.fail, error=error)
            yield self._row(f"{error} in {scenario}", scenario, fail, share)

    def damage(self, count: int) -> Iterator[Row]:
        """Flip bits, `count` in each large file, and truncate, lengthen and remove files."""
        if count == 0:
            return
        selection = BitSelection(_MAX_WHOLE_BYTES, num_sampled=count)
        run = self._new_directory()
        outcome = self._saver.save(run, SaveOptions(self._backend), [1])
        assert outcome.exit_code == 0, outcome.error
        checkpoint = Layout(run / "checkpoints").step(1)
        files = files_of(checkpoint)
        began = time.monotonic()
        flips = [flip for file in files for flip in unnoticed_flips(checkpoint, file, selection)]
        num_bits = sum(len(selection.bits(file)) for file in files)
        yield Row("flipped bits", num_bits, flips, time.monotonic() - began)
        began = time.monotonic()
        cuts = [cut for file in files for cut in unnoticed_cuts(checkpoint, file)]
        what = "files cut, lengthened or gone"
        yield Row(what, 6 * len(files), cuts, time.monotonic() - began)

    def jobs(self, count: int) -> Iterator[Row]:
        """Run `count` whole jobs, each killed one to four times."""
        results: dict[Job, JobResult] = {}
        generator = random.Random(self._seed)
        rows = {job: Row(f"jobs killed and resumed: {job}", 0, [], 0.0) for job in _JOBS}
        num_kills = 0
        for number in range(count):
            job = _JOBS[number % len(_JOBS)]
            began = time.monotonic()
            if job not in results:
                results[job] = run_uninterrupted(job, self._new_directory())
            kills = draw_kills(job, generator.randint(1, 4), seed=self._seed * 1000 + number)
            trial = run_with_kills(job, self._new_directory(), kills, results[job])
            num_kills += len(trial.kills)
            row = rows[job]
            row.cases += 1
            row.violations += [f"{text} (after {trial.kills})" for text in trial.violations]
            row.seconds += time.monotonic() - began
            _show(f"job {number + 1} of {count}: {job}, killed {'; '.join(trial.kills)}")
        yield from (row for row in rows.values() if row.cases)
        _show(f"{num_kills} kills of processes of whole jobs")

    def _scenarios(self) -> list[Scenario]:
        return [
            replace(scenario, name=f"{scenario}, {_threads(threads)}")
            for threads in _THREADS
            for scenario in save_scenarios(self._backend, {"threads": threads})
        ]

    def _row(
        self,
        what: str,
        scenario: Scenario,
        inject: Callable[[ScenarioTrials, FaultPoint], Trial],
        count: int | None,
        *,
        workers_only: bool = False,
    ) -> Row:
        """Make `count` trials of a scenario, or one at each of its fault points."""
        began = time.monotonic()
        trials = ScenarioTrials(scenario, self._saver, self._invariants, self._new_directory())
        points = [p for p in trials.fault_points if p.process > 0 or not workers_only]
        if count is not None:
            points = self._sample(points, count)
        done = [inject(trials, point) for point in points]
        violations = [str(trial) for trial in done if trial.violations]
        return Row(what, len(done), violations, time.monotonic() - began)

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
    if reason := strace.unavailable():
        print(reason)
        return 2
    # The restarts of the invariants warn of the damage that was done on purpose.
    logging.disable()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, one_rank_world() as world:
        directory = Path(name).resolve()
        saver = Saver()
        invariants = Invariants(world, directory / "expected")
        benchmark = FaultBenchmark(saver, invariants, directory, arguments.backend, arguments.seed)
        parts: list[Iterable[Row]] = [
            benchmark.kills(arguments.kills),
            benchmark.worker_kills(arguments.deaths if arguments.backend == "async_dcp" else 0),
            benchmark.faults(arguments.faults),
            benchmark.damage(arguments.flips),
            benchmark.jobs(arguments.jobs),
        ]
        for row in itertools.chain(*parts):
            _show(f"{row.what}: {row.cases}, {len(row.violations)} violations, {row.seconds:.0f} s")
            rows.append(row)
        saver.close()
    print("\n".join(_table(rows)))
    violations = [f"{row.what}: {case}" for row in rows for case in row.violations]
    print(*violations, sep="\n")
    return 1 if violations else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=1000, help="kills of a whole job while it saves"
    )
    parser.add_argument(
        "--deaths",
        type=int,
        default=100,
        help="kills of a writer or committer alone (async_dcp only)",
    )
    parser.add_argument("--faults", type=int, default=200, help="failing calls in a save")
    parser.add_argument("--flips", type=int, default=20_000, help="bits flipped in a large file")
    parser.add_argument(
        "--jobs", type=int, default=20, help="whole jobs that are killed and resumed"
    )
    parser.add_argument("--backend", default="dcp", help="the checkpoint backend")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    return parser.parse_args()


def _shares(count: int, among: int) -> list[int]:
    return [count // among + (index < count % among) for index in range(among)]


def _threads(number: int) -> str:
    return f"{number} writer thread{'s' if number > 1 else ''}"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| what was done | cases | promises broken | seconds |"
    yield "|---|---:|---:|---:|"
    for row in rows:
        yield f"| {row.what} | {row.cases:,} | {len(row.violations)} | {row.seconds:.0f} |"


def _show(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
