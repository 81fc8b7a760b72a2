"""Watches the file calls of a process with strace, and puts faults in the way of single ones.

Strace counts the calls of each thread that concern a given path, so a call is named by its kind,
its path and its number among them: the same in every run of the same program.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
"""Every call that changes what is on disk, or makes it durable."""

_PROCESS = "PROCESS"  # Stands for the process id in the name of a temporary file.
_ORDER = "processes.json"
_ATTACH_SECONDS = 10.0
_POLL_SECONDS = 0.001
_CALL = re.compile(r"(?P<thread>\d+) +(?P<time>[\d.]+) +(?P<name>\w+)\((?P<arguments>.*)")
_DESCRIPTOR_OR_STRING = re.compile(
    r'\b\d+<(?P<open>/[^>]*)>|AT_FDCWD(?:<[^>]*>)?|"(?P<text>[^"]*)"'
)


@dataclass(frozen=True)
class Call:
    """The `number`-th call `name` that concerns `path` (relative to the watched directory).

    `process` is the one that makes it: 0 is the first of those watched, and a thread or a child of
    it counts for it.
    """

    name: str
    path: str
    number: int
    process: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.number} of {self.path}"


@dataclass(frozen=True)
class Fault:
    """What happens to a call: `signal=SIGKILL` before it, or `error=ENOSPC` in its place."""

    call: Call
    effect: str


@cache
def unavailable() -> str | None:
    """Why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    attempt = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    return f"strace does not work here: {attempt.stderr.strip()}" if attempt.returncode else None


@contextmanager
def watching(processes: Sequence[int], log: Path) -> Iterator[None]:
    """Write every file call of processes that are at rest to `log`, a directory."""
    log.mkdir()
    with ExitStack() as tracers:
        for process in processes:
            tracers.enter_context(_attached(process, log / str(process), []))
        (log / _ORDER).write_text(json.dumps(list(processes)))
        yield


@contextmanager
def injecting(processes: Sequence[int], root: Path, fault: Fault) -> Iterator[None]:
    """Put one fault in the way of one of the processes, which are at rest."""
    call = fault.call
    process = processes[call.process]
    arguments = ["-P", str(root / call.path.replace(_PROCESS, str(process)))]
    arguments += ["-e", f"inject={call.name}:{fault.effect}:when={call.number}"]
    with _attached(process, Path(os.devnull), arguments):
        yield


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


def _is_traced(process: int) -> bool:
    """Whether every thread is under a tracer."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)


def calls_below(root: Path, log: Path) -> list[Call]:
    """The changes below `root` in the order in which they were begun; `watching` wrote `log`."""
    timed: list[tuple[float, Call]] = []
    for number, process in enumerate(json.loads((log / _ORDER).read_text())):
        timed += _calls_of(number, process, root, log / str(process))
    return [call for _, call in sorted(timed, key=itemgetter(0))]


def _calls_of(number: int, process: int, root: Path, log: Path) -> Iterator[tuple[float, Call]]:
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
            call = Call(name, paths[0], seen[thread, name, paths[0]], number)
            yield float(match["time"]), call


def _paths(arguments: str, root: Path) -> list[str]:
    """The paths below `root` that a call names, as descriptors or as text."""
    found = (match["open"] or match["text"] for match in _DESCRIPTOR_OR_STRING.finditer(arguments))
    inside = f"{root}/"
    return [path.removeprefix(inside) for path in found if path and path.startswith(inside)]


def sample(calls: Sequence[Call], count: int) -> list[Call]:
    """About `count` of `calls`, in order: every rename, for it is there that things change, the
    middle one of the pieces in which a file of tensors is written, and of the others some at even
    distances. Of the hundreds of pieces besides only the first and the last can be among them."""
    pieces: Counter[str] = Counter(call.path for call in calls if call.name in WRITES)
    always, others = [], []
    for call in calls:
        many = call.name in WRITES and pieces[call.path] > 2
        if call.name in RENAMES or (many and call.number == pieces[call.path] // 2):
            always.append(call)
        elif not many or call.number in (1, pieces[call.path]):
            others.append(call)
    wanted = max(1, count - len(always))
    chosen = {*always, *others[:: max(1, len(others) // wanted)]}
    return [call for call in calls if call in chosen]
