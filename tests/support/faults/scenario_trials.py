"""Trials of a scenario: kills, failing calls, pauses and shortages at the fault points of a save or
a restart."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.support.faults.damage import flip_bit
from tests.support.faults.invariants import Invariants
from tests.support.faults.saver import AtStop, Outcome, Saver
from tests.support.faults.scenario import Scenario
from tests.support.faults.shortage import Shortage, begin, end
from tests.support.faults.strace import RENAMES, Fault, FaultPoint, fault_points
from tests.support.toy_training import SaveOptions
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.run import json_lines
from torchrl_ckpt.run.directory import RunDirectory

Errno = Literal["ENOSPC", "EIO", "EMFILE"]

KILL = "signal=SIGKILL"
STOP = "signal=SIGSTOP"
KILLED = -9

_PAUSE_SECONDS = 0.2
_ATTEMPTS = 5


@dataclass(frozen=True)
class Trial:
    """One fault injected into a scenario, and the invariants that it violated."""

    scenario: str
    fault: Fault
    violations: Sequence[str]
    shortage: Shortage | None = None
    reached: bool = True
    """False where another rank made the call in each of several runs: nothing was tried then."""

    def __str__(self) -> str:
        effect = f"no {self.shortage} from then on" if self.shortage else self.fault.effect
        return f"{self.scenario}, {effect} at {self.fault.point}: {self.violations}"


class ScenarioTrials:
    """Repeats one scenario with a fault at any of its `fault_points`, and checks the invariants.

    All files are below `directory`, which must be the root of a small disk where a disk is to be
    filled.
    """

    def __init__(
        self, scenario: Scenario, saver: Saver, invariants: Invariants, directory: Path
    ) -> None:
        self.scenario = scenario
        self._saver = saver
        self._invariants = invariants
        self._directory = directory
        self._template = directory / "template"
        self._run = directory / "run"
        self._prepare_template()
        self.fault_points = self._record(directory / "calls.log")

    def kill(self, point: FaultPoint) -> Trial:
        """Kill the whole job right before `point`."""
        fault = Fault(point, KILL)
        outcome = self._execute(self.scenario.options, [self.scenario.step], fault=fault)
        if not outcome.reached:
            return self._unreached(fault)
        if outcome.exit_code != KILLED:
            violations = [f"the process was to be killed and ended with {outcome}"]
        else:
            passed = self.fault_points[: self.fault_points.index(point)]
            violations = self._violations_after_kill(passed)
        return Trial(self.scenario.name, fault, violations)

    def fail(self, point: FaultPoint, error: Errno) -> Trial:
        """Have the call fail. Training must continue and save the next step."""
        return self._continue_after(Fault(point, f"error={error}"), die_together=True)

    def kill_worker(self, point: FaultPoint) -> Trial:
        """Kill, right before `point`, only the process that makes the call, a worker of the
        trainer. Training must continue and save the next step."""
        return self._continue_after(Fault(point, KILL), die_together=False)

    def pause(self, point: FaultPoint) -> Trial:
        """Stop the process after the call, and let it continue a little later: all must be as if
        nothing had happened."""

        def at_stop(_: Sequence[int]) -> bool:
            time.sleep(_PAUSE_SECONDS)
            return True

        fault = Fault(point, STOP)
        outcome = self._save_once(fault, at_stop)
        if not outcome.reached:
            return self._unreached(fault)
        violations = list(self._violations_if_continued(outcome))
        if self._step_failed():
            violations.append("a save that was only paused failed")
        return Trial(self.scenario.name, fault, violations)

    def run_short(self, point: FaultPoint, shortage: Shortage) -> Trial:
        """Let something run out after the call, for the rest of this process.

        Training must continue, and report the failure if the step is not saved. A process without
        memory may also die.
        """

        def at_stop(processes: Sequence[int]) -> bool:
            begin(shortage, processes, self._directory)
            return True

        fault = Fault(point, STOP)
        try:
            outcome = self._save_once(fault, at_stop)
        finally:
            end(shortage, self._directory)
        if not outcome.reached:
            return self._unreached(fault)
        violations = list(self._violations_after_shortage(outcome, shortage))
        return Trial(self.scenario.name, fault, violations, shortage)

    def is_commit(self, point: FaultPoint) -> bool:
        """Whether the call is the rename that commits the step."""
        partial = Layout(Path("checkpoints")).partial(self.scenario.step)
        return point.name in RENAMES and point.path == str(partial)

    def _prepare_template(self) -> None:
        if self.scenario.committed:
            keep_all = replace(self.scenario.options, keep=None)
            outcome = self._saver.save(self._template, keep_all, self.scenario.committed)
            assert outcome.exit_code == 0, outcome.error
        self._template.mkdir(parents=True, exist_ok=True)
        layout = Layout(self._template / "checkpoints")
        if self.scenario.damaged is not None:
            flip_bit(layout.step(self.scenario.damaged) / "trainer/state.json", 0)
        for name, step in self.scenario.leftovers.items():
            if name == layout.replaced(step).name:
                layout.step(step).rename(layout.replaced(step))
            else:
                shutil.copytree(layout.step(step), layout.root / name)

    def _record(self, log: Path) -> list[FaultPoint]:
        outcome = self._execute(self.scenario.options, [self.scenario.step], log=log)
        assert outcome.exit_code == 0, outcome.error
        return [point for point in fault_points(self._run, log) if self._is_in_scope(point)]

    def _is_in_scope(self, point: FaultPoint) -> bool:
        return self.scenario.task == "restart" or point.path.startswith("checkpoints")

    def _reset_run(self) -> None:
        shutil.rmtree(self._run, ignore_errors=True)
        shutil.copytree(self._template, self._run)

    def _execute(self, options: SaveOptions, steps: Sequence[int], **faults: Any) -> Outcome:
        """Do the scenario's task on a new copy of its run. Among several ranks it is done again, a
        few times at most, until the fault is reached."""
        for _ in range(_ATTEMPTS if options.ranks > 1 else 1):
            self._reset_run()
            if self.scenario.task == "restart":
                outcome = self._saver.restart(self._run, options, **faults)
            else:
                outcome = self._saver.save(self._run, options, steps, **faults)
            if outcome.reached:
                break
        return outcome

    def _unreached(self, fault: Fault) -> Trial:
        violations = []
        if self.scenario.options.ranks == 1:
            violations = ["the call was not made, although nothing competes for it"]
        return Trial(self.scenario.name, fault, violations, reached=False)

    def _continue_after(self, fault: Fault, *, die_together: bool) -> Trial:
        """Save two steps, in the first of which the fault is injected."""
        options = replace(self.scenario.options, on_failure="continue")
        steps = [self.scenario.step, self.scenario.step + 1]
        outcome = self._execute(options, steps, fault=fault, die_together=die_together)
        if not outcome.reached:
            return self._unreached(fault)
        if outcome.exit_code != 0:
            violations = [f"training did not continue: {outcome.error}"]
        else:
            violations = list(self._violations_after_failure(fault.point))
        return Trial(self.scenario.name, fault, violations)

    def _save_once(self, fault: Fault, at_stop: AtStop) -> Outcome:
        options = replace(self.scenario.options, on_failure="continue")
        return self._execute(
            options, [self.scenario.step], fault=fault, die_together=False, at_stop=at_stop
        )

    def _violations_if_continued(self, outcome: Outcome) -> Iterator[str]:
        """Check a run that saved the scenario's step, or failed to."""
        before = set(self.scenario.committed)
        steps = before | {self.scenario.step}
        is_listed = self.scenario.step in Layout(self._run / "checkpoints").steps()
        if outcome.exit_code != 0:
            yield f"training did not continue: {outcome.error}"
        yield from self._invariants.violations(
            self._run,
            self.scenario.options,
            required=self._retained(steps) if is_listed else before,
            allowed=steps,
        )

    def _violations_after_shortage(self, outcome: Outcome, shortage: Shortage) -> Iterator[str]:
        if shortage == "memory" and outcome.exit_code != 0:
            outcome = Outcome(0, "")
        elif shortage not in ("disk", "inodes") and not self._step_failed():
            # On a full disk there may be no room for the report; `job_trial` sees the output.
            is_listed = self.scenario.step in Layout(self._run / "checkpoints").steps()
            if not is_listed:
                yield "the failure was not reported"
        yield from self._violations_if_continued(outcome)

    def _step_failed(self) -> bool:
        """Whether the scenario's step was reported as not saved."""
        text = f"of step {self.scenario.step} failed: "
        lines = RunDirectory(self._run, attempt=1).log("trainer").read_text().splitlines()
        return any(text in line for line in [*lines, *self._messages()])

    def _violations_after_kill(self, passed: Sequence[FaultPoint]) -> list[str]:
        """Check the run of a process that was killed after the calls of `passed`."""
        scenario = self.scenario
        required = allowed = set(scenario.committed) - {scenario.damaged}
        if any(self.is_commit(point) for point in passed):
            allowed = {*allowed, scenario.step}
            required = self._retained(allowed)
        return self._invariants.violations(
            self._run,
            scenario.options,
            required=required,
            allowed=allowed,
            damaged=scenario.damaged,
        )

    def _violations_after_failure(self, failed: FaultPoint) -> Iterator[str]:
        """Check the run after a save of two steps, in the first of which a call failed."""
        step, options = self.scenario.step, self.scenario.options
        passed = self.fault_points[: self.fault_points.index(failed)]
        was_committed = any(map(self.is_commit, passed))
        before = set(self.scenario.committed)
        is_listed = step in Layout(self._run / "checkpoints").steps()
        if was_committed:
            reports = self._logged_warnings()
        else:
            reports = [text for text in self._messages() if f"of step {step} failed: " in text]
        if not reports:
            yield "the failure was not reported"
        if is_listed and not was_committed and step not in before:
            yield f"step {step} was committed in spite of the failure"
        steps = before | {step + 1} | ({step} if was_committed else set())
        # A step whose removal failed stays a little longer.
        yield from self._invariants.violations(
            self._run, options, required=self._retained(steps), allowed=steps
        )

    def _retained(self, steps: set[int]) -> set[int]:
        """Return the steps that retention must not remove."""
        keep = self.scenario.options.keep
        return steps if keep is None else set(sorted(steps)[-keep:])

    def _messages(self) -> list[str]:
        """Return the messages shown to the user."""
        rows = json_lines.Tail(RunDirectory(self._run, attempt=1).progress).read()
        return [row["message"] for row in rows if "message" in row]

    def _logged_warnings(self) -> list[str]:
        """Return the warnings in the trainer's log."""
        lines = RunDirectory(self._run, attempt=1).log("trainer").read_text().splitlines()
        return [line for line in lines if " WARNING " in line]


TrialsOf = Callable[[Scenario], ScenarioTrials]
