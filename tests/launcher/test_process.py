"""A component's process can always be ended, with everything that it has started."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from tests.support.component_processes import LivingProcesses, MakeComponent
from tests.support.waiting import wait_until
from torchrl_ckpt.launcher.process import (
    MAX_LOG_BYTES,
    ComponentProcess,
    living_descendants,
    stop_processes,
)
from torchrl_ckpt.plugin_api.parent_death import adopt_orphans

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready")
time.sleep(60)
"""


def test_a_process_that_ignores_sigterm_is_killed(
    make_component: MakeComponent, living_processes: LivingProcesses
) -> None:
    earlier = living_descendants()
    process = ComponentProcess(make_component("trainer", IGNORES_SIGTERM))
    wait_until(lambda: process.log_tail(1) == ["ready"])
    began = time.monotonic()
    stop_processes([process], grace_seconds=0.3, exclude=earlier)
    assert 0.3 <= time.monotonic() - began < 3
    assert process.describe_exit() == "was killed by SIGKILL (the machine may be out of memory)"
    assert not living_processes()


def test_stopping_takes_no_longer_than_the_process_needs_to_end(
    make_component: MakeComponent,
) -> None:
    earlier = living_descendants()
    process = ComponentProcess(make_component("trainer", "import time; time.sleep(60)"))
    began = time.monotonic()
    stop_processes([process], grace_seconds=30, exclude=earlier)
    assert time.monotonic() - began < 5
    assert process.describe_exit() == "was killed by SIGTERM"


def test_orphans_in_sessions_of_their_own_are_killed(
    make_component: MakeComponent, living_processes: LivingProcesses
) -> None:
    adopt_orphans()
    earlier = living_descendants()
    process = ComponentProcess(
        make_component(
            "trainer",
            "import subprocess, sys\n"
            f"argv = [sys.executable, '-c', {IGNORES_SIGTERM!r}, sys.argv[1]]\n"
            "subprocess.Popen(argv, start_new_session=True)",
        )
    )
    wait_until(lambda: process.poll() == 0 and process.log_tail(1) == ["ready"])
    assert len(living_processes()) == 1
    stop_processes([process], grace_seconds=0.2, exclude=earlier)
    assert not living_processes()


def test_ctrl_c_in_the_terminal_does_not_reach_it(make_component: MakeComponent) -> None:
    code = "import os; print(os.getpid() == os.getsid(0))"
    process = ComponentProcess(make_component("trainer", code))
    wait_until(lambda: process.poll() is not None)
    assert process.log_tail(1) == ["True"]


def test_it_gets_environment_and_files_and_its_output_goes_to_the_log(
    make_component: MakeComponent, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    code = "import os, sys; print(os.environ['KEY'], file=sys.stderr); os.write({}, b'hello')"
    component = make_component("trainer", code.format(writing))
    process = ComponentProcess(replace(component, env={"KEY": "value"}, pass_fds=(writing,)))
    wait_until(lambda: process.poll() == 0)
    assert os.read(reading, 5) == b"hello"
    assert (tmp_path / "trainer.log").read_text() == "value\n"
    os.close(reading)
    os.close(writing)


def test_the_tail_is_the_last_lines_of_a_long_log(make_component: MakeComponent) -> None:
    code = "for n in range(20_000): print('line', n)"
    process = ComponentProcess(make_component("trainer", code))
    wait_until(lambda: process.poll() == 0)
    assert process.log_tail(2) == ["line 19998", "line 19999"]


def test_a_process_that_writes_without_end_fills_no_disk(make_component: MakeComponent) -> None:
    writes = (
        "import os, time\n"
        "for n in range(110):\n"
        "    os.write(1, b'a line that comes again and again\\n' * 30_000)\n"  # a megabyte
        "    time.sleep(0.005)\n"
        "time.sleep(0.5)\n"
        "print('the end')"
    )
    earlier = living_descendants()
    process = ComponentProcess(make_component("trainer", writes))
    try:
        largest = 0
        while process.poll() is None:
            largest = max(largest, process.log.stat().st_size)
            process.limit_log()
            time.sleep(0.02)
        process.limit_log()  # On a busy machine it may have ended since the last look.
    finally:
        stop_processes([process], grace_seconds=1, exclude=earlier)
    assert MAX_LOG_BYTES < largest < 1.5 * MAX_LOG_BYTES
    assert process.log.stat().st_size <= MAX_LOG_BYTES
    lines = set(process.log.read_text().splitlines())
    note = next(line for line in lines if line.startswith("[the log exceeded 67108864 bytes"))
    assert lines == {"a line that comes again and again", "the end", note}
