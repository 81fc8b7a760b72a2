"""The long run of the fault harness, and its table of results for docs/reliability.md:

    python -m benchmarks.faults --kills 1000 --faults 200 --jobs 20

Needs strace. A part whose number is 0 is left out. Ends with exit code 1 where a promise was
broken, and says which.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.faults import strace
from tests.support.faults.damage import Thoroughness, files_of, unnoticed_cuts, unnoticed_flips
from tests.support.faults.invariants import Promise
from tests.support.faults.job_trial import Ending, Job, draw_strikes, run_through, run_uninterrupted
from tests.support.faults.saver import Saver
from tests.support.faults.scenario import restart_scenarios, save_scenarios
from tests.support.faults.scenario_trials import Errno, Scenario, Stage
from tests.support.faults.strace import Call
from tests.support.toy_training import SaveOptions, one_rank
from torchrl_ckpt.checkpoint.layout import Layout

_THREADS = (1, 3)
_ERRORS: tuple[Errno, ...] = ("ENOSPC", "EIO")
_FLIPPED_WHOLE = 8192  # Bytes of a file in which every bit is flipped.
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
    """A line of the table. `broken` describes every case in which a promise was not kept."""

    what: str
    cases: int
    broken: list[str]
    seconds: float


class Bench:
    """Everything that the parts share."""

    def __init__(self, saver: Saver, promise: Promise, directory: Path, backend: str, seed: int):
        self._saver = saver
        self._promise = promise
        self._directory = directory
        self._backend = backend
        self._seed = seed
        self._number = itertools.count()

    def kills(self, count: int) -> Iterator[Row]:
        """Kills shared out over all saves, and one at every call of the restarts."""
        if count == 0:
            return
        for restart in restart_scenarios(self._backend):
            yield self._trials(f"kills in {restart}", restart, None, None)
        scenarios = self._scenarios()
        for scenario, share in zip(scenarios, _shares(count, len(scenarios)), strict=True):
            yield self._trials(f"kills in {scenario}", scenario, None, share)

    def deaths(self, count: int) -> Iterator[Row]:
        """Processes that work for the trainer die alone, shared out over all saves."""
        if count == 0:
            return
        scenarios = self._scenarios()
        for scenario, share in zip(scenarios, _shares(count, len(scenarios)), strict=True):
            began = time.monotonic()
            stage = Stage(scenario, self._saver, self._promise, self._new_directory())
            calls = [call for call in stage.calls if call.process > 0]
            trials = [stage.lose(call) for call in self._pick(calls, share)]
            broken = [str(trial) for trial in trials if trial.broken]
            what = f"lone deaths in {scenario}"
            yield Row(what, len(trials), broken, time.monotonic() - began)

    def faults(self, count: int) -> Iterator[Row]:
        """Failing calls shared out over errors and scenarios."""
        if count == 0:
            return
        kinds = list(itertools.product(self._scenarios(), _ERRORS))
        for (scenario, error), share in zip(kinds, _shares(count, len(kinds)), strict=True):
            yield self._trials(f"{error} in {scenario}", scenario, error, share)

    def damage(self, count: int) -> Iterator[Row]:
        """Flipped bits, `count` in each large file, and files cut, lengthened or gone."""
        if count == 0:
            return
        how = Thoroughness(whole=_FLIPPED_WHOLE, sample=count)
        run = self._new_directory()
        outcome = self._saver.save(run, SaveOptions(self._backend), [1])
        assert outcome.exit_code == 0, outcome.error
        checkpoint = Layout(run / "checkpoints").step(1)
        files = files_of(checkpoint)
        began = time.monotonic()
        broken = [flip for file in files for flip in unnoticed_flips(checkpoint, file, how)]
        count = sum(len(how.bits(file)) for file in files)
        yield Row("flipped bits", count, broken, time.monotonic() - began)
        began = time.monotonic()
        broken = [cut for file in files for cut in unnoticed_cuts(checkpoint, file)]
        what = "files cut, lengthened or gone"
        yield Row(what, 6 * len(files), broken, time.monotonic() - began)

    def jobs(self, count: int) -> Iterator[Row]:
        """Whole jobs, each killed one to four times."""
        endings: dict[Job, Ending] = {}
        drawn = random.Random(self._seed)
        rows = {job: Row(f"jobs killed and resumed: {job}", 0, [], 0.0) for job in _JOBS}
        kills = 0
        for number in range(count):
            job = _JOBS[number % len(_JOBS)]
            began = time.monotonic()
            if job not in endings:
                endings[job] = run_uninterrupted(job, self._new_directory())
            strikes = draw_strikes(job, drawn.randint(1, 4), seed=self._seed * 1000 + number)
            ordeal = run_through(job, self._new_directory(), strikes, endings[job])
            kills += len(ordeal.kills)
            row = rows[job]
            row.cases += 1
            row.broken += [f"{fault} (after {ordeal.kills})" for fault in ordeal.broken]
            row.seconds += time.monotonic() - began
            _show(f"job {number + 1} of {count}: {job}, killed {'; '.join(ordeal.kills)}")
        yield from (row for row in rows.values() if row.cases)
        _show(f"{kills} kills of processes of whole jobs")

    def _scenarios(self) -> list[Scenario]:
        return [
            replace(scenario, name=f"{scenario}, {_threads(threads)}")
            for threads in _THREADS
            for scenario in save_scenarios(self._backend, {"threads": threads})
        ]

    def _trials(
        self,
        what: str,
        scenario: Scenario,
        error: Errno | None,
        count: int | None,
    ) -> Row:
        """`count` trials of a scenario, or one for each of its calls."""
        began = time.monotonic()
        stage = Stage(scenario, self._saver, self._promise, self._new_directory())
        calls = stage.calls if count is None else self._pick(stage.calls, count)
        trials = [stage.kill(call) if error is None else stage.fail(call, error) for call in calls]
        broken = [str(trial) for trial in trials if trial.broken]
        return Row(what, len(trials), broken, time.monotonic() - began)

    def _pick(self, calls: Sequence[Call], count: int) -> list[Call]:
        """A sample of `count` calls or a few more, filled up with others at random."""
        first = strace.sample(calls, count)
        rest = [call for call in calls if call not in set(first)]
        drawn = random.Random(self._seed)
        return [*first, *drawn.sample(rest, max(0, min(count - len(first), len(rest))))]

    def _new_directory(self) -> Path:
        return self._directory / str(next(self._number))


def main() -> int:
    arguments = _parse()
    if reason := strace.unavailable():
        print(reason)
        return 2
    # What the promise's own restarts warn of is what was done to them.
    logging.disable()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, one_rank() as world:
        directory = Path(name).resolve()
        saver = Saver()
        promise = Promise(world, directory / "references")
        bench = Bench(saver, promise, directory, arguments.backend, arguments.seed)
        parts: list[Iterable[Row]] = [
            bench.kills(arguments.kills),
            bench.deaths(arguments.deaths if arguments.backend == "async_dcp" else 0),
            bench.faults(arguments.faults),
            bench.damage(arguments.flips),
            bench.jobs(arguments.jobs),
        ]
        for row in itertools.chain(*parts):
            _show(f"{row.what}: {row.cases}, broken {len(row.broken)}, {row.seconds:.0f} s")
            rows.append(row)
        saver.close()
    print("\n".join(_table(rows)))
    broken = [f"{row.what}: {case}" for row in rows for case in row.broken]
    print(*broken, sep="\n")
    return 1 if broken else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="kills of a process that saves")
    parser.add_argument(
        "--deaths", type=int, default=100, help="kills of a writer or committer alone (async_dcp)"
    )
    parser.add_argument("--faults", type=int, default=200, help="failing calls in a save")
    parser.add_argument("--flips", type=int, default=20_000, help="bits flipped in a large file")
    parser.add_argument("--jobs", type=int, default=20, help="whole jobs that are killed")
    parser.add_argument("--backend", default="dcp", help="the checkpoint backend")
    parser.add_argument("--seed", type=int, default=0, help="draws the random part")
    return parser.parse_args()


def _shares(count: int, among: int) -> list[int]:
    return [count // among + (place < count % among) for place in range(among)]


def _threads(number: int) -> str:
    return f"{number} writer thread{'s' if number > 1 else ''}"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| what was done | cases | promises broken | seconds |"
    yield "|---|---:|---:|---:|"
    for row in rows:
        yield f"| {row.what} | {row.cases:,} | {len(row.broken)} | {row.seconds:.0f} |"


def _show(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
