"""One start of a job, watched from outside, and a fault that hits one of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.faults import shortage as shortages
from tests.support.faults.job import Victim
from tests.support.faults.job_fault import JobFault, Moment
from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.run import metrics

_MARK = "TORCHRL_CKPT_FAULT_HARNESS"
_POLL_SECONDS = 0.002
_ATTEMPT_SECONDS = 180.0
_TAIL_CHARACTERS = 4000
_EXIT_SECONDS = 20.0


class JobAttempt:
    """A running job, from its start to the end of its last process.

    What it prints goes below `logs`. A disk that is to be filled is the parent of `output_dir`.
    """

    def __init__(self, argv: Sequence[str], output_dir: Path, logs: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._metrics = output_dir / "metrics.jsonl"
        self._layout = Layout(output_dir / "checkpoints")
        self._started = time.time()
        self._disk = output_dir.parent
        output_dir.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"output.{self._mark[:8]}.txt"
        with open(self._log, "wb") as log:
            self._launcher = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, _MARK: self._mark},
            )

    def inject(self, fault: JobFault) -> str | None:
        """Carry out `fault` when its moment has come; return once it is over.

        Return what was done, or None if the job ended before.
        """
        if not self._wait_until(self._condition(fault.moment)):
            return None
        time.sleep(fault.delay)
        running = self._running()
        # A process that has not been started yet cannot be hit; the launcher can.
        victim = fault.victim if fault.victim in running else "launcher"
        if victim not in running:
            return None
        if victim != fault.victim and fault.effect == "stop":
            return None  # Nobody watches the launcher.
        with suppress(ProcessLookupError):
            self._carry_out(fault, running[victim])
        return str(fault) if victim == fault.victim else f"launcher instead: {fault}"

    def _carry_out(self, fault: JobFault, process: int) -> None:
        match fault.effect:
            case "kill":
                os.kill(process, signal.SIGKILL)
            case "stop":
                os.kill(process, signal.SIGSTOP)
            case "pause":
                os.kill(process, signal.SIGSTOP)
                time.sleep(fault.held)
                os.kill(process, signal.SIGCONT)
            case shortage:
                shortages.begin(shortage, [process], self._disk)
                self._sleep(fault.held)
                shortages.end(shortage, self._disk)

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
        return self._log.read_text(errors="replace")[-_TAIL_CHARACTERS:]

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

    def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the job lives."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._launcher.poll() is None:
            time.sleep(_POLL_SECONDS)

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
        if "torchrl_ckpt.plugin_api.worker_process" in words:
            return "worker"
        roles: tuple[Victim, ...] = ("trainer", "orchestrator", "inference")
        return next((role for role in roles if role in words), None)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                marked = process.environ().get(_MARK) == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
