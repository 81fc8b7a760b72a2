"""A job ends well, or says why; it stops when it is asked; nothing is left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_ckpt.errors import CheckpointNotFound, ComponentFailed
from torchrl_ckpt.runner.process import Component
from torchrl_ckpt.runner.supervisor import supervise

SLEEP = "import time; time.sleep(60)"
POLITE = """
import pathlib, sys, time
print("training", flush=True)
while not pathlib.Path(sys.argv[1], "stop").exists():
    time.sleep(0.02)
time.sleep(0.3)
pathlib.Path(sys.argv[1], "saved").touch()
"""


class Silence:
    """A display that nobody looks at."""

    def refresh(self) -> None: ...

    def message(self, text: str, level: str = "info") -> None: ...


@pytest.fixture
def run(left_behind: Callable) -> Callable[..., None]:
    """Supervises components with `trainer` and `orchestrator` as the finite ones."""

    def supervised(*components: Component) -> None:
        names = {component.name for component in components}
        try:
            supervise(
                components,
                finite=names & {"trainer", "orchestrator"},
                display=Silence(),
                on_stop_requested=lambda: None,
                grace=1.0,
            )
        finally:
            assert not left_behind()

    return supervised


def test_the_job_ends_with_the_last_finite_process_and_stops_the_servers(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    began = time.monotonic()
    run(
        component("inference", SLEEP),
        component("orchestrator", "pass"),
        component("trainer", "import time; time.sleep(0.5)"),
    )
    assert 0.5 <= time.monotonic() - began < 5


def test_a_failure_is_told_with_the_end_of_the_log_and_stops_the_others(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    failing = component("trainer", "for n in range(30): print('line', n)\nraise ValueError('x')")
    with pytest.raises(ComponentFailed) as caught:
        run(component("inference", SLEEP), component("orchestrator", SLEEP), failing)
    message = str(caught.value)
    assert message.startswith("trainer ended with exit code 1\n")
    assert "  | ValueError: x\n" in message
    assert "  | line 29\n" in message
    assert "line 2\n" not in message
    assert str(failing.log) in message
    assert "after it" not in message


def test_a_signal_is_called_by_its_name(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ComponentFailed, match=r"trainer was killed by SIGKILL.*memory"):
        run(component("trainer", code))


def test_a_server_that_ends_before_the_job_is_a_failure_even_with_0(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    with pytest.raises(ComponentFailed, match="inference ended with exit code 0"):
        run(component("inference", "pass"), component("trainer", SLEEP))


def test_the_first_cause_is_told_before_what_followed_from_it(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    follower = (
        "import pathlib, sys, time\n"
        "while not pathlib.Path(sys.argv[1], 'dead').exists(): time.sleep(0.01)\n"
        "time.sleep(0.15); sys.exit(7)"
    )
    cause = "import pathlib, sys; pathlib.Path(sys.argv[1], 'dead').touch(); sys.exit(9)"
    with pytest.raises(ComponentFailed) as caught:
        run(component("trainer", follower), component("orchestrator", cause))
    message = str(caught.value)
    assert message.startswith("orchestrator ended with exit code 9")
    assert "after it, trainer ended with exit code 7" in message


def test_a_mistake_of_the_user_is_told_in_the_component_s_own_words(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    code = (
        "import sys; print('INFO loading'); print('error: step_25 is not there\\n  there is: 20');"
        f"print('ChildFailedError: noise of a launcher'); sys.exit({CheckpointNotFound.exit_code})"
    )
    with pytest.raises(ComponentFailed) as caught:
        run(component("trainer", code))
    message = str(caught.value)
    assert message.startswith("step_25 is not there\n  there is: 20\n")
    assert "loading" not in message
    assert "noise" not in message
    assert caught.value.exit_code == CheckpointNotFound.exit_code


def test_a_program_that_is_not_there_is_a_failure_that_names_it(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    missing = Component("trainer", ["/no/such/program"], component("trainer", "").log)
    with pytest.raises(ComponentFailed, match="cannot start /no/such/program"):
        run(missing)


def test_signal_handlers_are_put_back(
    run: Callable[..., None], component: Callable[..., Component]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run(component("trainer", "pass"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_trainer_finish(
    number: signal.Signals, start_runner: Callable, wait_until: Callable, tmp_path: Path
) -> None:
    runner = start_runner(trainer=POLITE, inference=SLEEP)
    wait_until(lambda: (tmp_path / "trainer.log").exists() and "training" in _log(tmp_path))
    runner.send_signal(number)
    time.sleep(0.05)
    runner.send_signal(number)  # as `timeout` and `uv run` do: to the process and to its group
    output, _ = runner.communicate(timeout=10)
    assert (tmp_path / "saved").exists()
    assert "finishing the step, then leaving" in output
    assert "ended well" in output
    assert runner.returncode == 0


def test_the_second_signal_stops_everything_at_once(
    start_runner: Callable, left_behind: Callable, wait_until: Callable, tmp_path: Path
) -> None:
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('training')\ntime.sleep(60)"
    )
    runner = start_runner(trainer=deaf)
    wait_until(lambda: (tmp_path / "trainer.log").exists() and "training" in _log(tmp_path))
    runner.send_signal(signal.SIGINT)
    wait_until((tmp_path / "stop").exists)
    time.sleep(0.6)
    assert runner.poll() is None
    runner.send_signal(signal.SIGINT)
    output, _ = runner.communicate(timeout=5)
    assert runner.returncode == 130
    assert "stopped at once" in output
    assert not left_behind()


def test_ctrl_c_while_the_processes_start_is_heeded(
    start_runner: Callable, wait_until: Callable, tmp_path: Path
) -> None:
    runner = start_runner(trainer="import time; time.sleep(1)\n" + POLITE)
    wait_until((tmp_path / "trainer.log").exists)
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=10)
    assert runner.returncode == 0
    assert (tmp_path / "saved").exists()


def _log(directory: Path) -> str:
    return (directory / "trainer.log").read_text()
