"""A process without progress is named, with its stacks; one that is only slow is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.component_processes import MakeComponent
from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.launcher.watchdog import Watchdog
from torchrl_ckpt.plugin_api.errors import ComponentFailed
from torchrl_ckpt.run.directory import RunDirectory

TIMEOUT = 1.5

RunJob = Callable[..., str]

BEGIN = """
import multiprocessing, os, pathlib, signal, sys, time
from torchrl_ckpt.plugin_api import heartbeat
directory = pathlib.Path(sys.argv[1])
os.environ[heartbeat.DIRECTORY_VARIABLE] = str(directory / "heartbeats")
def beat_for(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        heartbeat.beat()
        time.sleep(0.1)
def hang():
    time.sleep(100)
def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
    hang()
def run(name, *actions):
    heartbeat.begin(name)
    heartbeat.beat()
    for action in actions:
        action()
"""

TWO_RANKS = """
ranks = [
    multiprocessing.get_context("fork").Process(target=run, args=(f"trainer rank {n}", *actions))
    for n, actions in enumerate(RANKS)
]
for rank in ranks: rank.start()
for rank in ranks: rank.join()
sys.exit(max(abs(rank.exitcode) for rank in ranks))
"""

HANGS_AT_FIRST = """
started = directory / "started"
if not started.exists():
    started.touch()
    run("inference", stop)
(directory / "serves").touch()
run("inference", lambda: beat_for(100))
"""

TRIES_TO_WRITE = f"""
from torchrl_ckpt.run.patience import Patience
from torchrl_ckpt.run.progress import ProgressLog
def retry():
    end = time.monotonic() + {2 * TIMEOUT}
    def write():
        if time.monotonic() < end:
            raise OSError(28, "No space left on device")
    progress = ProgressLog(directory / "progress.jsonl", "trainer")
    Patience(60, "publish_timeout", progress).write(write, "the policy of step 3")
"""

UNTIL_SERVED = """
heartbeat.begin("trainer")
while not (directory / "serves").exists(): beat_for(0.1)
"""


@pytest.fixture(name="run_job")
def watched_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunJob:
    """Runs components to their end under a watchdog and returns what was shown."""

    def run(*components: Component) -> str:
        directory = RunDirectory(tmp_path, 1)
        with Display("run", directory, last_steps={}, plain=True) as display:
            supervise(
                components,
                display=display,
                watchdog=Watchdog(tmp_path / "heartbeats", TIMEOUT),
                on_stop_requested=lambda: None,
                grace_seconds=1.0,
            )
        return capsys.readouterr().out

    return run


def two_ranks(first: str, second: str) -> str:
    return BEGIN + TWO_RANKS.replace("RANKS", f"[({first},), ({second},)]")


def test_a_component_that_hangs_ends_the_job_with_its_stack_in_its_log(
    run_job: RunJob, make_component: MakeComponent
) -> None:
    trainer = make_component("trainer", BEGIN + 'run("trainer", hang)')
    with pytest.raises(ComponentFailed, match=r"^trainer \(process \d+\) has shown no pro") as end:
        run_job(trainer)
    assert str(trainer.log) in str(end.value)
    assert "`launcher.stall_timeout`" in str(end.value)
    assert "in hang\n" in trainer.log.read_text()


def test_a_component_that_was_stopped_is_named_as_such_with_its_stack(
    run_job: RunJob, make_component: MakeComponent
) -> None:
    orchestrator = make_component("orchestrator", BEGIN + 'run("orchestrator", stop)')
    with pytest.raises(ComponentFailed, match=r"^orchestrator .* s \(stopped by a signal\)"):
        run_job(orchestrator)
    assert "in stop\n" in orchestrator.log.read_text()


def test_of_ranks_that_wait_for_each_other_the_stopped_one_is_named(
    run_job: RunJob, make_component: MakeComponent
) -> None:
    # As in a collective: rank 0 beats no more, although rank 1 is the one to blame.
    code = two_ranks("hang", "stop")
    with pytest.raises(ComponentFailed, match=r"^trainer rank 1 .*\(stopped by a signal\)"):
        run_job(make_component("trainer", code))


def test_ranks_may_wait_for_one_of_them_that_makes_progress(
    run_job: RunJob, make_component: MakeComponent
) -> None:
    waits = f"lambda: time.sleep({2 * TIMEOUT})"
    run_job(make_component("trainer", two_ranks(f"lambda: beat_for({2 * TIMEOUT})", waits)))


def test_a_rank_that_tries_again_to_publish_on_a_full_disk_is_no_hang(
    run_job: RunJob, make_component: MakeComponent
) -> None:
    # Rank 1 waits for rank 0 in a barrier, longer than `stall_timeout`.
    ranks = TWO_RANKS.replace("RANKS", f"[(retry,), (lambda: time.sleep({2 * TIMEOUT}),)]")
    run_job(make_component("trainer", BEGIN + TRIES_TO_WRITE + ranks))


def test_a_server_that_always_hangs_ends_the_job_with_the_reason(
    run_job: RunJob, make_component: MakeComponent, capsys: pytest.CaptureFixture[str]
) -> None:
    server = replace(make_component("inference", BEGIN + 'run("inference", hang)'), max_restarts=1)
    waits = 'heartbeat.begin("trainer")\nbeat_for(100)'
    with pytest.raises(ComponentFailed) as end:
        run_job(server, make_component("trainer", BEGIN + waits))
    message = str(end.value)
    assert message.startswith("inference was killed by SIGKILL by the launcher (inference (proc")
    assert "has shown no progress for" in message
    assert "`launcher.stall_timeout`" in message
    assert "memory" not in message.splitlines()[0]
    assert "is restarted (1 of at most 1 times)" in capsys.readouterr().out


def test_a_server_that_hangs_is_restarted(run_job: RunJob, make_component: MakeComponent) -> None:
    server = replace(make_component("inference", BEGIN + HANGS_AT_FIRST), max_restarts=1)
    shown = run_job(server, make_component("trainer", BEGIN + UNTIL_SERVED))
    assert "inference (process" in shown
    assert "(stopped by a signal) and is killed" in shown
    assert "is restarted (1 of at most 1 times)" in shown


def test_a_start_may_take_longer(run_job: RunJob, make_component: MakeComponent) -> None:
    code = f'heartbeat.begin("trainer"); time.sleep({2 * TIMEOUT})'
    run_job(make_component("trainer", BEGIN + code))
