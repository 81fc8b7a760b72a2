"""A job ends well, or reports why not; it stops on request; no process is left behind."""

from __future__ import annotations

import os
import pty
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.component_processes import LivingProcesses, MakeComponent, StartLauncher
from tests.support.waiting import wait_until
from torchrl_ckpt.launcher.components import Component
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.launcher.watchdog import Watchdog
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound, ComponentFailed
from torchrl_ckpt.run.directory import RunDirectory

Supervise = Callable[..., str]

SLEEP = "import time; time.sleep(60)"

SAVES_ON_STOP = """
import pathlib, sys, time
print("training", flush=True)
while not pathlib.Path(sys.argv[1], "stop").exists():
    time.sleep(0.02)
time.sleep(0.3)
pathlib.Path(sys.argv[1], "saved").touch()
"""
"""A trainer that ends when it is asked to stop."""

DIES_AT_FIRST = """
import os, pathlib, signal, sys, time
starts = pathlib.Path(sys.argv[1], "starts")
number = int(starts.read_text()) if starts.exists() else 0
starts.write_text(str(number + 1))
if number < NUM_DEATHS:
    os.kill(os.getpid(), signal.SIGKILL)
print("serving", flush=True)
time.sleep(60)
"""
"""A server that dies NUM_DEATHS times and then stays up."""

UNTIL_SERVED = """
import pathlib, sys, time
while "serving" not in pathlib.Path(sys.argv[1], "inference.log").read_text():
    time.sleep(0.02)
"""
"""A trainer that ends when such a server stays up."""


@pytest.fixture(name="run_job")
def run_job_fixture(
    living_processes: LivingProcesses, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Supervise:
    """Supervises components to the end of the job, checks that no process is left behind, and
    returns what the display has shown."""

    def run_job(*components: Component) -> str:
        run = RunDirectory(tmp_path, 1)
        try:
            with Display("run", run, last_steps={}, plain=True) as display:
                supervise(
                    components,
                    display=display,
                    watchdog=Watchdog(run.heartbeats, None),
                    on_stop_requested=lambda: None,
                    grace_seconds=1.0,
                )
        finally:
            assert not living_processes()
        return capsys.readouterr().out

    return run_job


def test_the_job_ends_with_the_last_component_and_stops_the_servers(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    began = time.monotonic()
    run_job(
        make_component("inference", SLEEP),
        make_component("orchestrator", "pass"),
        make_component("trainer", "import time; time.sleep(0.5)"),
    )
    assert 0.5 <= time.monotonic() - began < 5


def test_a_failure_is_reported_with_the_end_of_the_log_and_stops_the_others(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    code = "for n in range(30): print('line', n)\nraise ValueError('x')"
    failing = make_component("trainer", code)
    with pytest.raises(ComponentFailed) as caught:
        run_job(make_component("inference", SLEEP), make_component("orchestrator", SLEEP), failing)
    message = str(caught.value)
    assert message.startswith("trainer ended with exit code 1\n")
    assert "  | ValueError: x\n" in message
    assert "  | line 29\n" in message
    assert "line 2\n" not in message
    assert str(failing.log) in message
    assert "orchestrator" not in message


def test_a_death_by_a_signal_is_reported_with_its_name(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ComponentFailed, match=r"trainer was killed by SIGKILL.*memory"):
        run_job(make_component("trainer", code))


def test_a_server_that_ends_before_the_job_is_a_failure_even_with_exit_code_0(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    with pytest.raises(ComponentFailed, match="inference ended with exit code 0"):
        run_job(make_component("inference", "pass"), make_component("trainer", SLEEP))


def test_a_server_that_dies_is_restarted_with_a_warning(
    run_job: Supervise, make_component: MakeComponent, tmp_path: Path
) -> None:
    server = make_component("inference", DIES_AT_FIRST.replace("NUM_DEATHS", "2"))
    shown = run_job(replace(server, max_restarts=2), make_component("trainer", UNTIL_SERVED))
    assert (tmp_path / "starts").read_text() == "3"
    warnings = [line for line in shown.splitlines() if "warning: inference was killed" in line]
    assert len(warnings) == 2
    for number, warning in enumerate(warnings, start=1):
        assert f"is restarted ({number} of at most 2 times); its log: {server.log}" in warning


def test_a_server_that_dies_too_often_ends_the_job_with_the_reason(
    run_job: Supervise, make_component: MakeComponent, tmp_path: Path
) -> None:
    server = make_component("inference", DIES_AT_FIRST.replace("NUM_DEATHS", "9"))
    with pytest.raises(ComponentFailed, match="inference was killed by SIGKILL"):
        run_job(replace(server, max_restarts=2), make_component("trainer", SLEEP))
    assert (tmp_path / "starts").read_text() == "3"


def test_a_server_that_has_lived_long_may_be_restarted_as_often_again(
    run_job: Supervise, make_component: MakeComponent, tmp_path: Path
) -> None:
    server = make_component("inference", DIES_AT_FIRST.replace("NUM_DEATHS", "3"))
    forgiven = replace(server, max_restarts=1, restart_reset_seconds=0.0)
    run_job(forgiven, make_component("trainer", UNTIL_SERVED))
    assert (tmp_path / "starts").read_text() == "4"


def test_a_server_that_reports_a_mistake_of_the_user_is_not_restarted(
    run_job: Supervise, make_component: MakeComponent, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_component("inference", "import sys; print('error: no such model'); sys.exit(2)")
    with pytest.raises(ComponentFailed, match="no such model"):
        run_job(replace(server, max_restarts=2), make_component("trainer", SLEEP))
    assert "restarted" not in capsys.readouterr().out


def test_the_processes_of_a_dead_server_are_killed_before_its_restart(
    run_job: Supervise, make_component: MakeComponent, tmp_path: Path
) -> None:
    # The restarted server checks whether the worker of the dead one still runs.
    server = (
        "import os, pathlib, subprocess, sys, time\n"
        "worker = pathlib.Path(sys.argv[1], 'worker')\n"
        "if not worker.exists():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    worker.write_text(str(child.pid))\n"
        "    os._exit(1)\n"
        "found = os.path.exists(f'/proc/{worker.read_text()}/cwd')\n"
        "pathlib.Path(sys.argv[1], 'found').write_text(str(found))\n"
        "time.sleep(60)"
    )
    trainer = (
        "import pathlib, sys, time\n"
        "while not pathlib.Path(sys.argv[1], 'found').exists(): time.sleep(0.02)\n"
        "time.sleep(0.1)"
    )
    component = replace(make_component("inference", server), max_restarts=1)
    run_job(component, make_component("trainer", trainer))
    assert (tmp_path / "found").read_text() == "False"


def test_the_first_failure_is_reported_before_those_that_follow_from_it(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    cause = "import pathlib, sys; pathlib.Path(sys.argv[1], 'dead').touch(); sys.exit(9)"
    consequence = (
        "import pathlib, sys, time\n"
        "while not pathlib.Path(sys.argv[1], 'dead').exists(): time.sleep(0.01)\n"
        "time.sleep(0.15); sys.exit(7)"
    )
    with pytest.raises(ComponentFailed) as caught:
        run_job(make_component("trainer", consequence), make_component("orchestrator", cause))
    message = str(caught.value)
    assert message.startswith("orchestrator ended with exit code 9")
    assert "then trainer ended with exit code 7" in message


def test_a_mistake_of_the_user_is_reported_in_the_words_of_the_component(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    code = (
        "import sys; print('INFO loading'); print('error: step_25 is not there\\n  there is: 20');"
        f"print('ChildFailedError: a report'); sys.exit({CheckpointNotFound.exit_code})"
    )
    with pytest.raises(ComponentFailed) as caught:
        run_job(make_component("trainer", code))
    message = str(caught.value)
    assert message.startswith("step_25 is not there\n  there is: 20\n")
    assert "loading" not in message
    assert "ChildFailedError" not in message
    assert caught.value.exit_code == CheckpointNotFound.exit_code


def test_a_program_that_does_not_exist_is_named(
    run_job: Supervise, make_component: MakeComponent
) -> None:
    missing = replace(make_component("trainer", ""), argv=["/no/such/program"])
    with pytest.raises(ComponentFailed, match="cannot start /no/such/program"):
        run_job(missing)


def test_signal_handlers_are_restored(run_job: Supervise, make_component: MakeComponent) -> None:
    earlier = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_job(make_component("trainer", "pass"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == earlier


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_trainer_finish(
    number: signal.Signals, start_launcher: StartLauncher, tmp_path: Path
) -> None:
    launcher = start_launcher(trainer=SAVES_ON_STOP, inference=SLEEP)
    wait_until(lambda: _is_training(tmp_path))
    launcher.send_signal(number)
    time.sleep(0.05)
    launcher.send_signal(number)  # As `timeout` and `uv run` do: to the process and to its group.
    output, _ = launcher.communicate(timeout=10)
    assert (tmp_path / "saved").exists()
    assert "stopping after the current step" in output
    assert output.endswith("finished\n")
    assert launcher.returncode == 0


def test_a_terminal_that_is_closed_stops_the_job_as_sigterm_does(
    start_launcher: StartLauncher, tmp_path: Path
) -> None:
    mine, terminal = pty.openpty()
    launcher = start_launcher(trainer=SAVES_ON_STOP, terminal=terminal)
    os.close(terminal)
    wait_until(lambda: _is_training(tmp_path))
    os.close(mine)  # The kernel sends SIGHUP, and what is printed from now on fails.
    launcher.communicate(timeout=10)
    assert launcher.returncode == 0
    assert (tmp_path / "saved").exists()


def test_nohup_keeps_a_job_running_when_the_terminal_is_closed(
    start_launcher: StartLauncher, tmp_path: Path
) -> None:
    launcher = start_launcher(trainer=SAVES_ON_STOP, nohup=True)
    wait_until(lambda: _is_training(tmp_path))
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert launcher.poll() is None
    assert not (tmp_path / "stop").exists()
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=10)
    assert launcher.returncode == 0


def test_the_second_signal_stops_everything_at_once(
    start_launcher: StartLauncher, living_processes: LivingProcesses, tmp_path: Path
) -> None:
    ignores_sigterm = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('training')\ntime.sleep(60)"
    )
    launcher = start_launcher(trainer=ignores_sigterm)
    wait_until(lambda: _is_training(tmp_path))
    launcher.send_signal(signal.SIGINT)
    wait_until((tmp_path / "stop").exists)
    time.sleep(0.6)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=5)
    assert launcher.returncode == 130
    assert "stopped at once" in output
    assert not living_processes()


def test_a_stop_before_the_first_step_waits_for_nobody(
    start_launcher: StartLauncher, living_processes: LivingProcesses, tmp_path: Path
) -> None:
    (tmp_path / "starting").touch()
    builds_a_model = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('training')\ntime.sleep(60)"
    )
    launcher = start_launcher(trainer=builds_a_model)
    wait_until(lambda: _is_training(tmp_path))
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=10)
    assert launcher.returncode == 130
    assert "no step was under way" in output
    assert not living_processes()


def test_a_failure_before_the_first_step_waits_for_no_trainer_to_save(
    start_launcher: StartLauncher, living_processes: LivingProcesses, tmp_path: Path
) -> None:
    (tmp_path / "starting").touch()
    launcher = start_launcher(trainer=SLEEP, orchestrator="raise SystemExit(3)")
    output, _ = launcher.communicate(timeout=10)
    assert "orchestrator ended with exit code 3" in output
    assert "saves the last finished step" not in output
    assert not living_processes()


def test_ctrl_c_while_the_processes_start_is_obeyed(
    start_launcher: StartLauncher, tmp_path: Path
) -> None:
    launcher = start_launcher(trainer="import time; time.sleep(1)\n" + SAVES_ON_STOP)
    wait_until((tmp_path / "trainer.log").exists)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=10)
    assert launcher.returncode == 0
    assert (tmp_path / "saved").exists()


def _is_training(directory: Path) -> bool:
    log = directory / "trainer.log"
    return log.exists() and "training" in log.read_text()
