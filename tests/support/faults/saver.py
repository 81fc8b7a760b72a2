"""The client of `tests.support.faults.fork_server`: processes that save, with or without a fault in their way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.support.faults import strace

if TYPE_CHECKING:
    from tests.support.toy_training import SaveOptions

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a process ended. `error` is what it said; -9 is the exit code of one that was killed."""

    exit_code: int
    error: str


class Saver:
    """A running fork server."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.fork_server"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def save(
        self,
        run: Path,
        options: SaveOptions,
        steps: Sequence[int],
        *,
        fault: strace.Fault | None = None,
        together: bool = True,
        log: Path | None = None,
    ) -> Outcome:
        """Checkpoint after each of `steps`; with a `fault`, or with its calls written to `log`.

        If one of several processes dies of the fault, all do, unless not `together`.
        """
        return self._do("save", run, options, steps, fault, log, together)

    def restart(
        self,
        run: Path,
        options: SaveOptions,
        *,
        fault: strace.Fault | None = None,
        log: Path | None = None,
    ) -> Outcome:
        """What a resumed run does before its processes start."""
        return self._do("restart", run, options, [], fault, log)

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)

    def _do(
        self,
        task: Literal["save", "restart"],
        run: Path,
        options: SaveOptions,
        steps: Sequence[int],
        fault: strace.Fault | None,
        log: Path | None,
        together: bool = True,
    ) -> Outcome:
        request = {"name": task, "run": str(run), "options": asdict(options), "steps": list(steps)}
        request["together"] = together
        processes = self._ask(request)
        around: AbstractContextManager[None] = nullcontext()
        if processes is None:
            raise RuntimeError(f"the task could not be prepared: {self._ask('go')['error']}")
        if fault is not None:
            around = strace.injecting(processes, run, fault)
        elif log is not None:
            around = strace.watching(processes, log)
        with around:
            return Outcome(**self._ask("go"))

    def _ask(self, request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())
