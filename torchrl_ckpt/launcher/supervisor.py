"""Supervises the processes of a job from start to end, and reports why one has failed."""

from __future__ import annotations

import signal
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil

from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.process import ComponentProcess, living_descendants, stop_processes
from torchrl_ckpt.launcher.watchdog import Stalled, Watchdog
from torchrl_ckpt.plugin_api.errors import ComponentFailed, RunInterrupted
from torchrl_ckpt.plugin_api.parent_death import adopt_orphans

_POLL_SECONDS = 0.02
_FOLLOWING_FAILURES_SECONDS = 0.5
_INTERRUPT_GRACE_SECONDS = 1.0
_SAME_SIGNAL_SECONDS = 0.5

# After a failure elsewhere: a step under way, and a save. A step may take minutes.
_SAVE_SECONDS = 600.0

# After a requested stop that no step has to be finished for: until all is ended.
_START_SECONDS = 3.0

# After a requested stop: how long the others may still take once everything is saved.
_AFTER_SAVE_SECONDS = 30.0

_LINES_SHOWN = 20
_LINES_SEARCHED = 200


def supervise(
    components: Sequence[Component],
    *,
    display: Display,
    watchdog: Watchdog,
    on_stop_requested: Callable[[], None],
    has_begun: Callable[[], bool] = lambda: True,
    grace_seconds: float = 10.0,
) -> None:
    """Start `components` and return once all but the servers have ended with exit code 0.

    The servers are stopped then. A server that ends earlier is restarted as often as its component
    allows, unless its log names a mistake of the user's. What `watchdog` finds to hang is killed: a
    server is restarted then, and a component replaces its worker process; any other process ends
    the job. No process is left behind, whatever happens; what has not ended `grace_seconds` after
    SIGTERM is killed. Call it in the main thread.

    The first SIGTERM, SIGHUP or Ctrl-C calls `on_stop_requested`, and waiting goes on. So does a
    failure, where another component `saves_on_stop`, before it is raised. Until a step
    `has_begun` nothing can be lost, and all is ended after 3 s at most.

    Raises:
        ComponentFailed: a component failed. The message is that of the user's mistake in its log,
            or the end of the log; of several failures the first one comes first.
        RunInterrupted: such a signal came a second time, or before a step had begun.
    """
    adopt_orphans()
    earlier_children = living_descendants()
    processes: list[ComponentProcess] = []
    with _StopRequests() as requests:
        try:
            processes.extend(map(ComponentProcess, components))
            _watch(processes, display, watchdog, requests, on_stop_requested, has_begun)
        except RunInterrupted:
            stop_processes(
                processes, grace_seconds=_INTERRUPT_GRACE_SECONDS, exclude=earlier_children
            )
            raise
        finally:
            stop_processes(processes, grace_seconds=grace_seconds, exclude=earlier_children)


def _watch(
    processes: list[ComponentProcess],
    display: Display,
    watchdog: Watchdog,
    requests: _StopRequests,
    on_stop_requested: Callable[[], None],
    has_begun: Callable[[], bool],
) -> None:
    stopped_at: float | None = None
    saved_at: float | None = None
    restarts = _RestartCounter(processes)
    while any(process.poll() != 0 for process in processes if not process.component.is_server):
        _restart_servers(processes, display, restarts)
        if _failed(processes):
            order = _in_order_of_failure(processes)
            cause = f"{order[0].name} {order[0].describe_exit()}"
            if has_begun():
                order += _let_save(processes, cause, display, requests, on_stop_requested)
            raise _failure(order)
        stalled = watchdog.find()
        if stalled is not None and (failure := _kill_stalled(stalled, processes, display)):
            if not _saves_on_stop(processes, stalled.owner) and has_begun():
                _let_save(processes, stalled.text, display, requests, on_stop_requested)
            raise failure
        if requests.count > 1:
            raise RunInterrupted("stopped at once, as requested; the step under way is not saved")
        if requests.count == 1 and stopped_at is None:
            stopped_at = time.monotonic()
            display.message(
                "stopping after the current step; Ctrl-C or SIGTERM once more stops at once"
            )
            on_stop_requested()
        is_due = stopped_at is not None and time.monotonic() > stopped_at + _START_SECONDS
        if is_due and not has_begun():
            raise RunInterrupted(
                "stopped, as requested; no step was under way, so there was nothing to save"
            )
        if stopped_at is not None and saved_at is None and _have_saved(processes):
            saved_at = time.monotonic()
        if saved_at is not None and time.monotonic() > saved_at + _AFTER_SAVE_SECONDS:
            return
        _pause(processes, display)


def _pause(processes: Sequence[ComponentProcess], display: Display) -> None:
    """What every wait here does between two looks."""
    for process in processes:
        process.limit_log()
    display.refresh()
    time.sleep(_POLL_SECONDS)


def _let_save(
    processes: Sequence[ComponentProcess],
    cause: str,
    display: Display,
    requests: _StopRequests,
    on_stop_requested: Callable[[], None],
) -> list[ComponentProcess]:
    """Let those that save on a stop save what is finished, although `cause` has ended the job.

    Returns those that have failed to. A signal, or the limit, ends the wait.
    """
    saving = [p for p in processes if p.component.saves_on_stop and p.poll() is None]
    if not saving or requests.count > 1:
        return []
    names = " and ".join(process.name for process in saving)
    display.message(
        f"{cause}; the {names} saves the last finished step "
        f"(at most {_SAVE_SECONDS:.0f} s; Ctrl-C or SIGTERM stops at once)",
        "warning",
    )
    on_stop_requested()
    earlier, deadline = requests.count, time.monotonic() + _SAVE_SECONDS
    while any(process.poll() is None for process in saving):
        if requests.count > earlier or time.monotonic() > deadline:
            return []
        _pause(processes, display)
    return [process for process in saving if process.poll() != 0]


def _saves_on_stop(processes: Sequence[ComponentProcess], name: str) -> bool:
    """Whether the component called `name` saves on a stop; one that hangs cannot any more."""
    return any(process.name == name and process.component.saves_on_stop for process in processes)


def _have_saved(processes: Sequence[ComponentProcess]) -> bool:
    """Whether all components that save on a stop have ended with exit code 0, and there is one."""
    codes = [process.poll() for process in processes if process.component.saves_on_stop]
    return bool(codes) and all(code == 0 for code in codes)


def _restart_servers(
    processes: list[ComponentProcess], display: Display, restarts: _RestartCounter
) -> None:
    """Replace the ended servers in `processes` that may be restarted."""
    for index, process in enumerate(processes):
        component = process.component
        if not component.is_server or process.poll() is None or _user_error(process) is not None:
            continue
        if not restarts.allows(component):
            continue
        number = restarts.add(component)
        display.message(
            f"{process.name} {process.describe_exit()} and is restarted ({number} of at most "
            f"{component.max_restarts} times); its log: {process.log}",
            "warning",
        )
        process.kill_group()
        processes[index] = ComponentProcess(component)


def _kill_stalled(
    stalled: Stalled, processes: Sequence[ComponentProcess], display: Display
) -> ComponentFailed | None:
    """Kill a process that hangs; return why the job ends, unless another one will replace it."""
    component = next((p for p in processes if p.name == stalled.owner), None)
    if component is None:
        with suppress(psutil.NoSuchProcess):
            stalled.process.kill()
    else:
        component.kill_reason = (
            f"{stalled.text}; the stacks of its threads are in its log. An operation that rightly "
            "takes longer needs a higher `launcher.stall_timeout`"
        )
        component.kill_group()
    if component is None or component.component.is_server:
        display.message(f"{stalled.text} and is killed; its stacks are in its log", "warning")
        return None
    return ComponentFailed(
        f"{stalled.text}; the stacks of its threads are at the end of {component.log}. If a step "
        "has to take that long, raise `launcher.stall_timeout`"
    )


class _RestartCounter:
    """Counts the restarts of each server since it last lived for `restart_reset_seconds`.

    A run of weeks may thus lose a server now and then.
    """

    def __init__(self, processes: Sequence[ComponentProcess]) -> None:
        self._counts: Counter[str] = Counter()
        self._last_starts = {process.name: time.monotonic() for process in processes}

    def allows(self, component: Component) -> bool:
        """Whether the server, which has just ended, may be restarted."""
        age = time.monotonic() - self._last_starts[component.name]
        if age >= component.restart_reset_seconds:
            self._counts[component.name] = 0
        return self._counts[component.name] < component.max_restarts

    def add(self, component: Component) -> int:
        """Count a restart and return its number."""
        self._counts[component.name] += 1
        self._last_starts[component.name] = time.monotonic()
        return self._counts[component.name]


class _StopRequests:
    """Counts SIGTERM, SIGINT and SIGHUP while it is entered, in place of the previous handlers.

    SIGHUP, which a closed terminal sends, stays ignored where it is, as `nohup` wants it.

    Signals within half a second count as one: `timeout`, `uv run` and batch systems send a signal
    to the process and to its group.
    """

    def __init__(self) -> None:
        self.count = 0
        self._latest = float("-inf")
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _StopRequests:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._latest > _SAME_SIGNAL_SECONDS:
            self.count += 1
        self._latest = now


def _failed(processes: Sequence[ComponentProcess]) -> list[ComponentProcess]:
    """The processes that ended with an error, and servers that ended at all."""
    return [
        process
        for process in processes
        if process.poll() is not None and (process.poll() != 0 or process.component.is_server)
    ]


def _in_order_of_failure(processes: Sequence[ComponentProcess]) -> list[ComponentProcess]:
    """The failed processes, the first cause first.

    Waits a moment for others that fail as a consequence. Of those found dead together, the one
    whose log was written to least recently comes first.
    """
    order: list[ComponentProcess] = []
    deadline = time.monotonic() + _FOLLOWING_FAILURES_SECONDS
    while time.monotonic() < deadline and len(order) < len(processes):
        found = [process for process in _failed(processes) if process not in order]
        order += sorted(found, key=lambda process: process.log.stat().st_mtime_ns)
        time.sleep(_POLL_SECONDS)
    return order


def _failure(order: Sequence[ComponentProcess]) -> ComponentFailed:
    first, *others = order
    user_error = _user_error(first)
    if user_error is not None:
        text = f"{user_error}\n  {first.name} {first.describe_exit()}; its log: {first.log}"
    else:
        lines = "\n".join(first.log_tail(_LINES_SHOWN)) or "(nothing)"
        log = textwrap.indent(lines, "  | ", lambda line: True)
        text = (
            f"{first.name} {first.describe_exit()}\n{log}\n"
            f"  these are the last lines of {first.log}"
        )
    for other in others:
        text += f"\n  then {other.name} {other.describe_exit()}; its log: {other.log}"
    failure = ComponentFailed(text)
    code = first.poll()
    if user_error is not None and code is not None and code > 0:
        failure.exit_code = code
    return failure


def _user_error(process: ComponentProcess) -> str | None:
    """The message of the user's mistake that ended the process: `error: ...` in its log.

    None if there is none. Indented lines after it belong to it; torchrun's report may follow and is
    left out.
    """
    code = process.poll()
    if code is None or code <= 0:
        return None
    lines = process.log_tail(_LINES_SEARCHED)
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return None
    end = starts[0] + 1
    while end < len(lines) and lines[end].startswith(" "):
        end += 1
    return "\n".join(lines[starts[0] : end]).removeprefix("error: ")
