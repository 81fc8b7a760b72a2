"""One start of a job, watched from outside, and the kill of one of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tests.support.faults.job import Victim
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.run import metrics

Moment = Literal["start", "step", "save"]

_MARK = "TORCHRL_CKPT_FAULT_HARNESS"
_POLL_SECONDS = 0.002
_ATTEMPT_SECONDS = 180.0
_EXIT_SECONDS = 20.0


@dataclass(frozen=True)
class JobKill:
    """SIGKILL to `victim`, `delay` seconds after the start of an attempt, the end of a step or the
    beginning of a save."""

    victim: Victim
    moment: Moment
    delay: float

    def __str__(self) -> str:
        return f"{self.victim} {self.delay:.3f} s after the {self.moment}"


class JobAttempt:
    """A running job, from its start to the end of its last process."""

    def __init__(self, argv: Sequence[str], output_dir: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._metrics = output_dir / "metrics.jsonl"
        self._layout = Layout(output_dir / "checkpoints")
        self._started = time.time()
        output_dir.mkdir(parents=True, exist_ok=True)
        self._log = output_dir / f"output.{self._mark[:8]}.txt"
        with open(self._log, "wb") as log:
            self._launcher = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, _MARK: self._mark},
            )

    def kill(self, kill: JobKill) -> str | None:
        """Carry out `kill` when its moment has come.

        Return what was killed, or None if the job ended before.
        """
        if not self._wait_until(self._condition(kill.moment)):
            return None
        time.sleep(kill.delay)
        running = self._running()
        # A process that has not been started yet cannot be killed; the launcher can.
        victim = kill.victim if kill.victim in running else "launcher"
        if victim not in running:
            return None
        with suppress(ProcessLookupError):
            os.kill(running[victim], signal.SIGKILL)
        return str(kill) if victim == kill.victim else f"launcher instead of {kill}"

    def wait(self) -> int:
        """Wait for the launcher; return its exit code. Raises `RuntimeError` if the job hangs."""
        try:
            return self._launcher.wait(_ATTEMPT_SECONDS)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
            raise RuntimeError(f"a job hangs:\n{self.output()}") from None

    def output(self) -> str:
        """Return the end of what the job printed."""
        return self._log.read_text(errors="replace")[-4000:]

    def left_behind(self) -> list[str]:
        """Kill the processes that outlive the launcher, and return their command lines."""
        deadline = time.monotonic() + _EXIT_SECONDS
        while (left := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS * 10)
        names = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        return names

    def _condition(self, moment: Moment) -> Callable[[], bool]:
        """Return a function that says whether `moment` has come."""
        conditions: dict[Moment, Callable[[], bool]] = {
            "start": lambda: True,
            "step": self._has_done_a_step,
            "save": self._is_saving,
        }
        return conditions[moment]

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        while not condition():
            if self._launcher.poll() is not None:
                return False
            if time.time() - self._started > _ATTEMPT_SECONDS:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _has_done_a_step(self) -> bool:
        rows = metrics.read(self._metrics)
        return any(row["component"] == "trainer" and row["time"] > self._started for row in rows)

    def _is_saving(self) -> bool:
        """Whether this attempt has begun a partial checkpoint."""
        with suppress(FileNotFoundError):
            partials = self._layout.partials().values()
            return any(partial.stat().st_ctime > self._started for partial in partials)
        return False

    def _running(self) -> dict[Victim, int]:
        """Return the ids of the job's processes by role; of several ranks any one."""
        running: dict[Victim, int] = {}
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                if role := self._role(process):
                    running[role] = process.pid
        return running

    def _role(self, process: psutil.Process) -> Victim | None:
        if process.pid == self._launcher.pid:
            return "launcher"
        words = process.cmdline()
        if "torchrl_ckpt.launcher.torchrun" in words:
            return "torchrun"
        roles: tuple[Victim, ...] = ("trainer", "orchestrator", "inference")
        return next((role for role in roles if role in words), None)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                marked = process.environ().get(_MARK) == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
