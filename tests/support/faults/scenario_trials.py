"""Kills and failing calls at every point of a save, of a prune and of a restart."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tests.support.faults.damage import flip_bit
from tests.support.faults.invariants import Promise
from tests.support.faults.saver import Outcome, Saver
from tests.support.faults.strace import RENAMES, Call, Fault, calls_below
from tests.support.toy_training import SaveOptions
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.run import json_lines
from torchrl_ckpt.run.directory import RunDirectory

Errno = Literal["ENOSPC", "EIO"]

KILL = "signal=SIGKILL"
KILLED = -9


@dataclass(frozen=True)
class Scenario:
    """A run with some checkpoints, and the step it is saving or whose restart it is making.

    `damaged` is a committed step with a flipped bit, which a restart has to set aside. `leftovers`
    are directories of earlier kills by name, each made of a committed step: a copy, or the step
    itself where it was about to be replaced.
    """

    name: str
    options: SaveOptions
    committed: Sequence[int]
    task: Literal["save", "restart"] = "save"
    step: int = 3
    damaged: int | None = None
    leftovers: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Trial:
    """What came of one fault. Nothing is `broken` where every promise was kept."""

    scenario: str
    fault: Fault
    broken: Sequence[str]

    def __str__(self) -> str:
        return f"{self.scenario}, {self.fault.effect} at {self.fault.call}: {self.broken}"


class Stage:
    """Plays one scenario again and again, each time with another fault."""

    def __init__(self, scenario: Scenario, saver: Saver, promise: Promise, directory: Path) -> None:
        self.scenario = scenario
        self._saver = saver
        self._promise = promise
        self._template = directory / "template"
        self._run = directory / "run"
        self._prepare()
        self.calls = self._record(directory / "calls.log")

    def kill(self, call: Call) -> Trial:
        """Kill the process right before `call`."""
        fault = Fault(call, KILL)
        outcome = self._play(fault, [self.scenario.step], self.scenario.options)
        if outcome.exit_code != KILLED:
            broken = [f"the process was to be killed and ended with {outcome}"]
        else:
            broken = list(self._broken(happened=self.calls[: self.calls.index(call)]))
        return Trial(self.scenario.name, fault, broken)

    def fail(self, call: Call, error: Errno) -> Trial:
        """Have `call` fail. Training goes on and saves the next step as well."""
        fault = Fault(call, f"error={error}")
        step = self.scenario.step
        options = replace(self.scenario.options, on_failure="continue")
        outcome = self._play(fault, [step, step + 1], options)
        if outcome.exit_code != 0:
            return Trial(self.scenario.name, fault, [f"training did not go on: {outcome.error}"])
        return Trial(self.scenario.name, fault, list(self._unheard(call)))

    def lose(self, call: Call) -> Trial:
        """Kill, right before `call`, the process that makes it, and no other: one that works for
        the trainer. Training goes on and saves the next step as well."""
        fault = Fault(call, KILL)
        step = self.scenario.step
        options = replace(self.scenario.options, on_failure="continue")
        outcome = self._play(fault, [step, step + 1], options, together=False)
        if outcome.exit_code != 0:
            return Trial(self.scenario.name, fault, [f"training did not go on: {outcome.error}"])
        return Trial(self.scenario.name, fault, list(self._unheard(call)))

    def commits(self, call: Call) -> bool:
        """Whether it is the rename that makes the step a committed one."""
        partial = Layout(Path("checkpoints")).partial(self.scenario.step)
        return call.name in RENAMES and call.path == str(partial)

    def _prepare(self) -> None:
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

    def _record(self, log: Path) -> list[Call]:
        self._set_up()
        outcome = self._do(self.scenario.options, [self.scenario.step], log=log)
        assert outcome.exit_code == 0, outcome.error
        return [call for call in calls_below(self._run, log) if self._concerns(call)]

    def _concerns(self, call: Call) -> bool:
        return self.scenario.task == "restart" or call.path.startswith("checkpoints")

    def _play(
        self, fault: Fault, steps: Sequence[int], options: SaveOptions, **how: Any
    ) -> Outcome:
        self._set_up()
        return self._do(options, steps, fault=fault, **how)

    def _set_up(self) -> None:
        shutil.rmtree(self._run, ignore_errors=True)
        shutil.copytree(self._template, self._run)

    def _do(self, options: SaveOptions, steps: Sequence[int], **watch: Any) -> Outcome:
        if self.scenario.task == "restart":
            return self._saver.restart(self._run, options, **watch)
        return self._saver.save(self._run, options, steps, **watch)

    def _broken(self, happened: Sequence[Call]) -> list[str]:
        """Checks the run after a process that got as far as `happened`."""
        scenario = self.scenario
        must = may = set(scenario.committed) - {scenario.damaged}
        if any(self.commits(call) for call in happened):
            may = {*may, scenario.step}
            must = self._kept(may)
        return self._promise.broken(
            self._run, scenario.options, must=must, may=may, damaged=scenario.damaged
        )

    def _unheard(self, call: Call) -> Iterator[str]:
        """Checks the run after a save of two steps, in the first of which `call` failed."""
        step, options = self.scenario.step, self.scenario.options
        committed = any(map(self.commits, self.calls[: self.calls.index(call)]))
        before = set(self.scenario.committed)
        listed = step in Layout(self._run / "checkpoints").steps()
        if committed:
            heard = self._warnings()
        else:
            heard = [text for text in self._messages() if f"of step {step} failed: " in text]
        if not heard:
            yield "nothing was said of the failure"
        if listed and not committed and step not in before:
            yield f"step {step} was committed in spite of the failure"
        steps = before | {step + 1} | ({step} if committed else set())
        # A step that could not be removed is there a little longer.
        yield from self._promise.broken(self._run, options, must=self._kept(steps), may=steps)

    def _kept(self, steps: set[int]) -> set[int]:
        """Those that retention may not remove."""
        keep = self.scenario.options.keep
        return steps if keep is None else set(sorted(steps)[-keep:])

    def _messages(self) -> list[str]:
        """What the person who watches was told."""
        rows = json_lines.Tail(RunDirectory(self._run, attempt=1).progress).read()
        return [row["message"] for row in rows if "message" in row]

    def _warnings(self) -> list[str]:
        """The warnings in the trainer's log."""
        lines = RunDirectory(self._run, attempt=1).log("trainer").read_text().splitlines()
        return [line for line in lines if " WARNING " in line]
