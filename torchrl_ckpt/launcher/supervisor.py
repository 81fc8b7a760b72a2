"""Watches the processes of a job from start to end, and says why when one fails."""

from __future__ import annotations

import signal
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import Any, Protocol

from torchrl_ckpt.launcher.process import Component, Process, descendants, stop
from torchrl_ckpt.plugin_api.errors import ComponentFailed, RunInterrupted
from torchrl_ckpt.plugin_api.parent_death import adopt_orphans
from torchrl_ckpt.run.progress import Level

_POLL_SECONDS = 0.02
_GATHER_SECONDS = 0.5
_HASTY_GRACE_SECONDS = 1.0
# A server that has lived so long has nothing that keeps it from starting: earlier deaths count no
# more. A run of weeks may lose one now and then.
_FORGIVING_SECONDS = 3600.0

_LINES_SHOWN = 20
_LINES_SEARCHED = 200


class Watched(Protocol):
    """What the supervisor needs of a display."""

    def refresh(self) -> None: ...

    def message(self, text: str, level: Level = ...) -> None: ...


def supervise(
    components: Sequence[Component],
    *,
    finite: Collection[str],
    display: Watched,
    on_stop_requested: Callable[[], None],
    grace: float = 10.0,
) -> None:
    """Start `components` and return once all that are named in `finite` have ended with 0.

    The others are servers, which are stopped then. One that ends before is started again as often
    as its component allows, and as often again after an hour of life, unless it says that the user
    has made a mistake. Whatever happens, no process is left behind; what has not ended `grace`
    seconds after SIGTERM is killed. Call it from the main thread.

    The first SIGTERM or Ctrl-C calls `on_stop_requested` and goes on waiting for the finite ones.

    Raises:
        ComponentFailed: the first that ended otherwise, with its own words or the end of its log.
        RunInterrupted: SIGTERM or Ctrl-C came a second time.
    """
    adopt_orphans()
    bystanders = descendants()
    processes: list[Process] = []
    with _StopRequests() as requests:
        try:
            processes.extend(map(Process, components))
            _watch(processes, finite, display, requests, on_stop_requested)
        except RunInterrupted:
            stop(processes, grace=_HASTY_GRACE_SECONDS, spare=bystanders)
            raise
        finally:
            stop(processes, grace=grace, spare=bystanders)


def _watch(
    processes: list[Process],
    finite: Collection[str],
    display: Watched,
    requests: _StopRequests,
    on_stop_requested: Callable[[], None],
) -> None:
    asked = False
    restarts = _Restarts()
    while not all(process.poll() == 0 for process in processes if process.name in finite):
        _restart_servers(processes, finite, display, restarts)
        if _failed(processes, finite):
            raise _failure(_in_order_of_failure(processes, finite))
        if requests.count > 1:
            raise RunInterrupted("stopped at once, as asked; nothing was saved on the way out")
        if requests.count == 1 and not asked:
            asked = True
            display.message("finishing the step, then leaving; ask again to stop at once")
            on_stop_requested()
        display.refresh()
        time.sleep(_POLL_SECONDS)


def _restart_servers(
    processes: list[Process], finite: Collection[str], display: Watched, restarts: _Restarts
) -> None:
    """Start the servers again that have ended, in place."""
    for place, process in enumerate(processes):
        name, allowed = process.name, process.component.restarts
        if process.poll() is None or name in finite or restarts.before(name) >= allowed:
            continue
        if _own_words(process) is not None:
            continue
        number = restarts.count(name)
        display.message(
            f"{name} {process.how_it_ended()} and is started again ({number} of at most {allowed} "
            f"times); its log: {process.log}",
            "warning",
        )
        process.kill_group()
        processes[place] = Process(process.component)


class _Restarts:
    """How often each server was started again since it last lived for long."""

    def __init__(self) -> None:
        began = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._latest: defaultdict[str, float] = defaultdict(lambda: began)

    def before(self, name: str) -> int:
        """The number so far, as its latest life has left it."""
        if time.monotonic() - self._latest[name] >= _FORGIVING_SECONDS:
            self._counts[name] = 0
        return self._counts[name]

    def count(self, name: str) -> int:
        """Add one; the number with it."""
        self._counts[name] += 1
        self._latest[name] = time.monotonic()
        return self._counts[name]


class _StopRequests:
    """Counts SIGTERM and SIGINT while it is entered, in place of what they did before.

    Within half a second they count as one: `timeout`, `uv run` and batch systems send a signal to
    the process and to its group.
    """

    _SAME_REQUEST_SECONDS = 0.5

    def __init__(self) -> None:
        self.count = 0
        self._latest = float("-inf")
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _StopRequests:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._latest > self._SAME_REQUEST_SECONDS:
            self.count += 1
        self._latest = now


def _failed(processes: Sequence[Process], finite: Collection[str]) -> list[Process]:
    """Those that ended in error, and servers that ended at all."""
    ended = [process for process in processes if process.poll() is not None]
    return [process for process in ended if process.poll() != 0 or process.name not in finite]


def _in_order_of_failure(processes: Sequence[Process], finite: Collection[str]) -> list[Process]:
    """The failed ones, first cause first, after a moment in which others may follow it down.

    Of those that are found dead together, the one that fell silent first comes first.
    """
    order: list[Process] = []
    deadline = time.monotonic() + _GATHER_SECONDS
    while time.monotonic() < deadline and len(order) < len(processes):
        found = [process for process in _failed(processes, finite) if process not in order]
        order += sorted(found, key=lambda process: process.log.stat().st_mtime_ns)
        time.sleep(_POLL_SECONDS)
    return order


def _failure(order: Sequence[Process]) -> ComponentFailed:
    first, *others = order
    words = _own_words(first)
    if words is not None:
        text = f"{words}\n  {first.name} {first.how_it_ended()}; its log: {first.log}"
    else:
        lines = "\n".join(first.tail(_LINES_SHOWN)) or "(nothing)"
        log = textwrap.indent(lines, "  | ", lambda line: True)
        text = f"{first.name} {first.how_it_ended()}\n{log}\n  the end of its log: {first.log}"
    for other in others:
        text += f"\n  after it, {other.name} {other.how_it_ended()}; its log: {other.log}"
    failure = ComponentFailed(text)
    code = first.poll()
    if words is not None and code is not None and code > 0:
        failure.exit_code = code
    return failure


def _own_words(process: Process) -> str | None:
    """What the component's command line said of a mistake of the user's: `error: ...`.

    Indented lines after it belong to it. torchrun's own report may follow, and is left out.
    """
    code = process.poll()
    if code is None or code <= 0:
        return None
    lines = process.tail(_LINES_SEARCHED)
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return None
    end = starts[0] + 1
    while end < len(lines) and lines[end].startswith(" "):
        end += 1
    return "\n".join(lines[starts[0] : end]).removeprefix("error: ")
