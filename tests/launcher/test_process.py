"""A component's process can always be ended, with everything that it started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torchrl_ckpt.launcher.process import Component, Process, descendants, stop
from torchrl_ckpt.plugin_api.parent_death import adopt_orphans

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); {rest}"


def test_a_process_that_ignores_sigterm_is_killed(
    component: Callable[..., Component], left_behind: Callable, wait_until: Callable
) -> None:
    before = descendants()
    process = Process(component("server", DEAF.format(rest="time.sleep(60)")))
    wait_until(lambda: process.tail(1) == ["deaf"])
    began = time.monotonic()
    stop([process], grace=0.3, spare=before)
    assert 0.3 <= time.monotonic() - began < 3
    assert process.how_it_ended() == "was killed by SIGKILL, as happens when memory runs out"
    assert not left_behind()


def test_a_process_that_ends_when_asked_is_not_waited_for_longer(
    component: Callable[..., Component],
) -> None:
    before = descendants()
    process = Process(component("server", "import time; time.sleep(60)"))
    began = time.monotonic()
    stop([process], grace=30, spare=before)
    assert time.monotonic() - began < 5
    assert process.how_it_ended() == "was killed by SIGTERM"


def test_orphans_in_sessions_of_their_own_are_found(
    component: Callable[..., Component], left_behind: Callable, wait_until: Callable
) -> None:
    adopt_orphans()
    before = descendants()
    orphan = DEAF.format(rest="time.sleep(60)")
    process = Process(
        component(
            "trainer",
            "import subprocess, sys\n"
            f"argv = [sys.executable, '-c', {orphan!r}, sys.argv[1]]\n"
            "subprocess.Popen(argv, start_new_session=True)",
        )
    )
    wait_until(lambda: process.poll() == 0 and process.tail(1) == ["deaf"])
    assert len(left_behind()) == 1
    stop([process], grace=0.2, spare=before)
    assert not left_behind()


def test_ctrl_c_in_the_terminal_does_not_reach_it(component: Callable[..., Component]) -> None:
    process = Process(component("trainer", "import os; print(os.getpid() == os.getsid(0))"))
    while process.poll() is None:
        time.sleep(0.02)
    assert process.tail(1) == ["True"]


def test_environment_files_and_output_are_handed_over(
    component: Callable[..., Component], wait_until: Callable, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    code = "import os, sys; print(os.environ['KEY'], file=sys.stderr); os.write({}, b'hello')"
    asked = component("server", code.format(writing))
    process = Process(replace(asked, env={"KEY": "value"}, pass_fds=(writing,)))
    wait_until(lambda: process.poll() == 0)
    assert os.read(reading, 5) == b"hello"
    assert (tmp_path / "server.log").read_text() == "value\n"
    os.close(reading)
    os.close(writing)


def test_the_tail_is_the_last_lines_of_a_long_log(
    component: Callable[..., Component], wait_until: Callable
) -> None:
    process = Process(component("trainer", "for n in range(20_000): print('line', n)"))
    wait_until(lambda: process.poll() == 0)
    assert process.tail(2) == ["line 19998", "line 19999"]
