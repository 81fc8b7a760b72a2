"""Records the file calls of processes with strace, and injects faults at single ones.

strace counts, for each thread, the calls that concern a given path. A call is therefore identified
by its name, its path and its number among them, which are the same in every run of a program. Where
several ranks make the same directory, only the first of them does so in fact: such a call may be
missing in another run, and `reached` says whether it was made.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path

WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range")
RESIZES = ("truncate", "ftruncate", "fallocate")
SYNCS = ("fsync", "fdatasync", "sync_file_range", "syncfs")
RENAMES = ("rename", "renameat", "renameat2", "link", "linkat")
MAKES = ("mkdir", "mkdirat")
REMOVES = ("unlink", "unlinkat", "rmdir")
OPENS = ("open", "openat")
CHANGES = (*WRITES, *RESIZES, *SYNCS, *RENAMES, *MAKES, *REMOVES, *OPENS)
"""Every system call that changes files, or makes changes durable."""

_PROCESS = "PROCESS"  # Stands for the process id in the name of a temporary file.
_ORDER = "processes.json"
_ATTACH_SECONDS = 10.0
_POLL_SECONDS = 0.001
_STOPPED_SECONDS = 0.1
_CALL = re.compile(r"(?P<thread>\d+) +(?P<time>[\d.]+) +(?P<name>\w+)\((?P<arguments>.*)")
_DESCRIPTOR_OR_STRING = re.compile(
    r'\b\d+<(?P<open>/[^>]*)>|AT_FDCWD(?:<[^>]*>)?|"(?P<text>[^"]*)"'
)


@dataclass(frozen=True)
class FaultPoint:
    """A system call at which a fault can be injected: the `number`-th call `name` that concerns
    `path`, relative to the recorded directory.

    `process` is the index of the process that makes it, among those recorded. The calls of its
    threads and children count as its own.
    """

    name: str
    path: str
    number: int
    process: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.number} of {self.path}"


@dataclass(frozen=True)
class Fault:
    """`effect` is strace's: `signal=SIGKILL` before the call, `signal=SIGSTOP` right after it, or
    `error=ENOSPC` instead of it."""

    point: FaultPoint
    effect: str


@cache
def unavailable() -> str | None:
    """Return why strace cannot be used here, or None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    tried = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    return f"strace does not work here: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def recording(processes: Sequence[int], log: Path) -> Iterator[None]:
    """Record the file calls of waiting processes below `log`, a new directory."""
    log.mkdir()
    with ExitStack() as tracers:
        for process in processes:
            tracers.enter_context(_attached(process, log / str(process), []))
        (log / _ORDER).write_text(json.dumps(list(processes)))
        yield


@contextmanager
def injecting(processes: Sequence[int], root: Path, fault: Fault, log: Path) -> Iterator[None]:
    """Inject one fault into one of the processes, which are waiting, and write the calls that
    concern its path to `log`."""
    point = fault.point
    process = processes[point.process]
    arguments = ["-P", str(root / point.path.replace(_PROCESS, str(process)))]
    arguments += ["-e", f"inject={point.name}:{fault.effect}:when={point.number}"]
    with _attached(process, log, arguments):
        yield


def reached(log: Path, point: FaultPoint) -> bool:
    """Whether the call of `point` was made in the run that `injecting` wrote `log` of."""
    calls = filter(None, map(_CALL.match, log.read_text().splitlines()))
    counts = Counter(call["thread"] for call in calls if call["name"] == point.name)
    return max(counts.values(), default=0) >= point.number


@contextmanager
def _attached(process: int, log: Path, arguments: Sequence[str]) -> Iterator[None]:
    calls = ",".join(f"?{name}" for name in CHANGES)
    command = ["strace", "-f", "-y", "-qq", "-s", "0", "-ttt", "-e", "signal=none"]
    command += ["-e", f"trace={calls}", *arguments, "-o", str(log), "-p", str(process)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    try:
        deadline = time.monotonic() + _ATTACH_SECONDS
        while not _is_traced(process):
            if tracer.poll() is not None or time.monotonic() > deadline:
                tracer.kill()
                raise RuntimeError(f"strace did not attach: {tracer.stderr.read()}")
            time.sleep(_POLL_SECONDS)
        yield
        tracer.wait(_ATTACH_SECONDS)  # It ends with the process.
    finally:
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()


def wait_until_stopped(process: int, has_ended: Callable[[], bool]) -> bool:
    """Return True once a traced process stands still, or False once `has_ended`.

    Every traced call stops it for a moment, so it must be stopped for a while.
    """
    stopped_since: float | None = None
    while not has_ended():
        now = time.monotonic()
        if not _is_stopped(process):
            stopped_since = None
        elif stopped_since is None:
            stopped_since = now
        elif now - stopped_since > _STOPPED_SECONDS:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _is_stopped(process: int) -> bool:
    """Whether every thread is stopped, by a signal or by its tracer."""
    with suppress(FileNotFoundError, ProcessLookupError):
        threads = Path(f"/proc/{process}/task").iterdir()
        return all(re.search("^State:\t[tT]", (t / "status").read_text(), re.M) for t in threads)
    return False


def _is_traced(process: int) -> bool:
    """Whether every thread is being traced."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)


def fault_points(root: Path, log: Path) -> list[FaultPoint]:
    """Read from `log` the calls that changed files below `root`, in the order of their begin."""
    timed: list[tuple[float, FaultPoint]] = []
    for index, process in enumerate(json.loads((log / _ORDER).read_text())):
        timed += _calls_of(index, process, root, log / str(process))
    return [point for _, point in sorted(timed, key=itemgetter(0))]


def _calls_of(
    index: int, process: int, root: Path, log: Path
) -> Iterator[tuple[float, FaultPoint]]:
    """Yield each call of one process with its time."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for line in log.read_text().splitlines():
        match = _CALL.match(line)
        if match is None or not (paths := _paths(match["arguments"], root)):
            continue
        thread, name, arguments = match["thread"], match["name"], match["arguments"]
        paths = [path.replace(f".{process}.tmp", f".{_PROCESS}.tmp") for path in paths]
        for path in dict.fromkeys(paths):
            seen[thread, name, path] += 1
        if name not in OPENS or "O_CREAT" in arguments:
            yield (
                float(match["time"]),
                FaultPoint(name, paths[0], seen[thread, name, paths[0]], index),
            )


def _paths(arguments: str, root: Path) -> list[str]:
    """Return the paths below `root` among the arguments, which are descriptors or strings."""
    found = (match["open"] or match["text"] for match in _DESCRIPTOR_OR_STRING.finditer(arguments))
    inside = f"{root}/"
    return [path.removeprefix(inside) for path in found if path and path.startswith(inside)]


def sample(points: Sequence[FaultPoint], count: int) -> list[FaultPoint]:
    """Return about `count` of `points`, in order.

    Every rename is among them, since that is where steps appear and disappear, and so is the middle
    one of the writes to a file of tensors; the rest is chosen at even distances. Of the hundreds of
    writes to such a file only the first, the middle and the last are candidates.
    """
    num_writes: Counter[str] = Counter(point.path for point in points if point.name in WRITES)
    always, candidates = [], []
    for point in points:
        is_one_of_many = point.name in WRITES and num_writes[point.path] > 2
        if point.name in RENAMES or (
            is_one_of_many and point.number == num_writes[point.path] // 2
        ):
            always.append(point)
        elif not is_one_of_many or point.number in (1, num_writes[point.path]):
            candidates.append(point)
    wanted = max(1, count - len(always))
    chosen = {*always, *candidates[:: max(1, len(candidates) // wanted)]}
    return [point for point in points if point in chosen]
