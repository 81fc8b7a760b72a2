"""Whole jobs, by the commands that users give, whose processes are killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from torchrl_ckpt.checkpoint.layout import Layout
from torchrl_ckpt.checkpoint.manifest import Manifest
from torchrl_ckpt.checkpoint.verify import verify
from torchrl_ckpt.plugin_api.durable_files import digest_file
from torchrl_ckpt.plugin_api.errors import UserError
from torchrl_ckpt.run import metrics

MAX_STEPS = 6

_RECIPES = Path(__file__).parents[3] / "recipes"
_MARK = "TORCHRL_CKPT_FAULT_HARNESS"
_POLL_SECONDS = 0.002
_LONGEST_ATTEMPT_SECONDS = 180.0
_LONGEST_FAREWELL_SECONDS = 20.0
_LATEST_START_SECONDS = 10.0
_LATEST_SECONDS = 0.3

Victim = Literal["runner", "torchrun", "trainer", "orchestrator", "inference"]


@dataclass(frozen=True)
class Job:
    """A tiny job: `sft`, or `rl` at an asynchrony level."""

    async_level: int | None = None
    ranks: int = 1
    save_async: bool = False

    def __str__(self) -> str:
        kind = "sft" if self.async_level is None else f"rl at async_level {self.async_level}"
        saving = ", saved in the background" if self.save_async else ""
        return f"{kind}, {self.ranks} rank{'s' if self.ranks > 1 else ''}{saving}"

    @property
    def victims(self) -> tuple[Victim, ...]:
        shared: tuple[Victim, ...] = ("runner", "torchrun", "trainer")
        return shared if self.async_level is None else (*shared, "orchestrator", "inference")

    def argv(self, output_dir: Path) -> list[str]:
        if self.async_level is None:
            words = f"sft @ {_RECIPES}/sft_reverse.toml --data.batch-size 8 --threads 1"
            words += f" --ranks {self.ranks}"
        else:
            words = f"rl @ {_RECIPES}/rl_reverse.toml --no-trainer.warm-start --trainer.threads 1"
            words += f" --trainer.ranks {self.ranks} --inference.threads 1"
            words += " --orchestrator.prompts-per-step 6 --orchestrator.samples-per-prompt 4"
            words += f" --no-orchestrator.evaluation --orchestrator.async-level {self.async_level}"
        words += f" --max-steps {MAX_STEPS} --ckpt.interval 2"
        words += " --ckpt.save-async" if self.save_async else ""
        command, *arguments = words.split()
        program = Path(sys.executable).with_name(command)
        return [str(program), *arguments, "--output-dir", str(output_dir)]


@dataclass(frozen=True)
class Strike:
    """Kill `victim` with SIGKILL, `delay` seconds after a moment of an attempt: its start, a step's
    end, or the beginning of a save."""

    victim: Victim
    moment: Literal["start", "step", "save"]
    delay: float

    def __str__(self) -> str:
        return f"{self.victim} {self.delay:.3f} s after the {self.moment}"


def draw_strikes(job: Job, count: int, seed: int) -> list[Strike]:
    """Strikes at random; every third is at the beginning of a save, as far as that goes."""
    drawn = random.Random(f"{job} {seed}")
    strikes = []
    for number in range(count):
        moment: Any = drawn.choice(["start", "step", "save"]) if number % 3 else "save"
        longest = _LATEST_START_SECONDS if moment == "start" else _LATEST_SECONDS
        strikes.append(Strike(drawn.choice(job.victims), moment, drawn.uniform(0, longest)))
    return strikes


@dataclass
class Ordeal:
    """What a job went through. `broken` lists the promises that were not kept."""

    job: Job
    kills: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ending:
    """What a job ended with: digests of its state by file, and its metrics."""

    digests: dict[str, str]
    rows: list[dict[str, Any]]


def run_uninterrupted(job: Job, output_dir: Path) -> Ending:
    attempt = _Attempt(job.argv(output_dir), output_dir)
    code = attempt.wait()
    if code != 0:
        raise RuntimeError(f"{job} failed by itself:\n{attempt.output()}")
    return _ending(output_dir)


def run_through(job: Job, output_dir: Path, strikes: Sequence[Strike], expected: Ending) -> Ordeal:
    """Start and resume `job` until it is finished, with one strike in each of the first attempts,
    and compare its end with that of the uninterrupted run."""
    ordeal = Ordeal(job)
    layout = Layout(output_dir / "checkpoints")
    remaining = list(strikes)
    while MAX_STEPS not in layout.steps():
        before = layout.steps()
        resume = ["--ckpt.resume-step", "latest"] if before else []
        attempt = _Attempt([*job.argv(output_dir), *resume], output_dir)
        struck = bool(remaining) and attempt.suffer(remaining.pop(0), ordeal.kills)
        code = attempt.wait()
        if left := attempt.left_behind():
            ordeal.broken.append(f"left behind: {left}")
        if code != 0 and not struck:
            ordeal.broken.append(f"an attempt failed by itself:\n{attempt.output()}")
            return ordeal
        ordeal.broken += _losses(layout, before)
    ordeal.broken += _differences(_ending(output_dir), expected)
    return ordeal


class _Attempt:
    """A running job, from its start to the end of its last process."""

    def __init__(self, argv: Sequence[str], output_dir: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._metrics = output_dir / "metrics.jsonl"
        self._layout = Layout(output_dir / "checkpoints")
        self._started = time.time()
        output_dir.mkdir(parents=True, exist_ok=True)
        self._log = output_dir / f"output.{self._mark[:8]}.txt"
        with open(self._log, "wb") as log:
            self._runner = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, _MARK: self._mark},
            )

    def suffer(self, strike: Strike, kills: list[str]) -> bool:
        """Let `strike` happen, and note it in `kills`; False where the job ended before it did."""
        if not self._wait_for(self._sign_of(strike.moment)):
            return False
        time.sleep(strike.delay)
        living = self._living()
        # What has not been started yet cannot be killed: then it is the runner's turn.
        victim = strike.victim if strike.victim in living else "runner"
        if victim not in living:
            return False
        with suppress(ProcessLookupError):
            os.kill(living[victim], signal.SIGKILL)
        kills.append(str(strike) if victim == strike.victim else f"{strike}, or rather the runner")
        return True

    def wait(self) -> int:
        """The runner's exit code."""
        try:
            return self._runner.wait(_LONGEST_ATTEMPT_SECONDS)
        except subprocess.TimeoutExpired:
            self._runner.kill()
            self._runner.wait()
            raise RuntimeError(f"a job hangs:\n{self.output()}") from None

    def output(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def left_behind(self) -> list[str]:
        """The job's processes that are there although the runner is gone; they are killed."""
        deadline = time.monotonic() + _LONGEST_FAREWELL_SECONDS
        while (left := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS * 10)
        names = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        return names

    def _sign_of(self, moment: str) -> Callable[[], bool]:
        """What shows that `moment` has come."""
        signs: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "step": self._has_done_a_step,
            "save": self._is_saving,
        }
        return signs[moment]

    def _wait_for(self, sign: Callable[[], bool]) -> bool:
        while not sign():
            if self._runner.poll() is not None:
                return False
            if time.time() - self._started > _LONGEST_ATTEMPT_SECONDS:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _has_done_a_step(self) -> bool:
        rows = metrics.read(self._metrics)
        return any(row["component"] == "trainer" and row["time"] > self._started for row in rows)

    def _is_saving(self) -> bool:
        """Whether there is a partial checkpoint that is not an earlier attempt's."""
        with suppress(FileNotFoundError):
            partials = self._layout.partials().values()
            return any(partial.stat().st_ctime > self._started for partial in partials)
        return False

    def _living(self) -> dict[Victim, int]:
        """The job's processes by what they are; of several ranks any one."""
        living: dict[Victim, int] = {}
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                if role := self._role(process):
                    living[role] = process.pid
        return living

    def _role(self, process: psutil.Process) -> Victim | None:
        if process.pid == self._runner.pid:
            return "runner"
        words = process.cmdline()
        if "torch.distributed.run" in words:
            return "torchrun"
        roles: tuple[Victim, ...] = ("trainer", "orchestrator", "inference")
        return next((role for role in roles if role in words), None)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                marked = process.environ().get(_MARK) == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


def _losses(layout: Layout, before: Sequence[int]) -> Iterator[str]:
    """Whether all checkpoints of `before` are there still, and all that are there are good."""
    steps = layout.steps()
    yield from (f"step {step} is lost" for step in before if step not in steps)
    for step in steps:
        try:
            verify(layout.step(step))
        except UserError as error:
            yield f"step {step} is listed and bad: {error}"


def _ending(output_dir: Path) -> Ending:
    directory = Layout(output_dir / "checkpoints").step(MAX_STEPS)
    digests = _digests(verify(directory))
    weights = output_dir / "weights" / f"step_{MAX_STEPS}"
    for file in sorted(weights.glob("*.safetensors")):
        digests[file.name] = digest_file(file)[1]
    rows = [row for row in metrics.read(output_dir / "metrics.jsonl") if _is_training(row)]
    rows.sort(key=lambda row: (row["component"], row["step"]))
    return Ending(digests, [_timeless(row) for row in rows])


def _digests(manifest: Manifest) -> dict[str, str]:
    """Those of all files of state; `batch.json` and the orchestrator's `part.json` hold times."""
    varying = ("batch.json", "orchestrator/part.json", "request.json")
    return {file.path: file.digest for file in manifest.files if not file.path.endswith(varying)}


def _is_training(row: dict[str, Any]) -> bool:
    return row["component"] in ("trainer", "orchestrator")


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if name != "time" and not name.endswith(("_seconds", "_per_second"))
    }


def _differences(ending: Ending, expected: Ending) -> Iterator[str]:
    # The final weights are not there where the job was killed between last commit and export.
    for name, digest in expected.digests.items():
        found = ending.digests.get(name)
        if found != digest and not (found is None and "/" not in name):
            yield f"{name} is not that of the uninterrupted run"
    numbers = [(row["component"], row["step"]) for row in ending.rows]
    if numbers != [(row["component"], row["step"]) for row in expected.rows]:
        yield f"the rows in metrics.jsonl are {numbers}"
    else:
        pairs = zip(ending.rows, expected.rows, strict=True)
        yield from (f"{row} instead of {wanted}" for row, wanted in pairs if row != wanted)
