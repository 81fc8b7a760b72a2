"""A job ends well, or says why; it stops when it is asked; nothing is left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from torchrl_ckpt.launcher.process import Component
from torchrl_ckpt.launcher.supervisor import supervise
from torchrl_ckpt.plugin_api.errors import CheckpointNotFound, ComponentFailed

SLEEP = "import time; time.sleep(60)"
POLITE = """
import pathlib, sys, time
print("training", flush=True)
while not pathlib.Path(sys.argv[1], "stop").exists():
    time.sleep(0.02)
time.sleep(0.3)
pathlib.Path(sys.argv[1], "saved").touch()
"""

# Dies DEATHS times, then stays up.
MORTAL = """
import os, pathlib, signal, sys, time
lives = pathlib.Path(sys.argv[1], "lives")
number = int(lives.read_text()) if lives.exists() else 0
lives.write_text(str(number + 1))
if number < DEATHS:
    os.kill(os.getpid(), signal.SIGKILL)
print("up at last", flush=True)
time.sleep(60)
"""

# A trainer that ends when such a server stays up.
UNTIL_UP = """
import pathlib, sys, time
while "up at last" not in pathlib.Path(sys.argv[1], "inference.log").read_text():
    time.sleep(0.02)
"""


class Words:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def refresh(self) -> None: ...

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def run(left_behind: Callable, words: Words) -> Callable[..., None]:
    """Supervises components with `trainer` and `orchestrator` as the finite ones."""

    def supervised(*components: Component) -> None:
        names = {component.name for component in components}
        try:
            supervise(
                components,
                finite=names & {"trainer", "orchestrator"},
                display=words,
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


def test_a_server_without_state_is_started_again_and_that_is_told(
    run: Callable[..., None], component: Callable[..., Component], words: Words, tmp_path: Path
) -> None:
    server = component("inference", MORTAL.replace("DEATHS", "2"))
    run(replace(server, restarts=2), component("trainer", UNTIL_UP))
    assert (tmp_path / "lives").read_text() == "3"
    assert [message.split(";")[0] for message in words.messages] == [
        "inference was killed by SIGKILL, as happens when memory runs out and is started again "
        f"({number} of at most 2 times)"
        for number in (1, 2)
    ]


def test_a_server_that_dies_too_often_ends_the_job_with_the_reason(
    run: Callable[..., None], component: Callable[..., Component], words: Words
) -> None:
    server = component("inference", MORTAL.replace("DEATHS", "9"))
    with pytest.raises(ComponentFailed, match="inference was killed by SIGKILL"):
        run(replace(server, restarts=2), component("trainer", SLEEP))
    assert len(words.messages) == 2


def test_a_server_that_has_lived_long_may_die_as_often_again(
    run: Callable[..., None],
    component: Callable[..., Component],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torchrl_ckpt.launcher.supervisor._FORGIVING_SECONDS", 0.0)
    server = component("inference", MORTAL.replace("DEATHS", "3"))
    run(replace(server, restarts=1), component("trainer", UNTIL_UP))
    assert (tmp_path / "lives").read_text() == "4"


def test_a_server_that_names_a_mistake_is_not_started_again(
    run: Callable[..., None], component: Callable[..., Component], words: Words
) -> None:
    server = component("inference", "import sys; print('error: no such model'); sys.exit(2)")
    with pytest.raises(ComponentFailed, match="no such model"):
        run(replace(server, restarts=2), component("trainer", SLEEP))
    assert words.messages == []


def test_what_a_dead_server_has_left_does_not_live_beside_the_next_one(
    run: Callable[..., None], component: Callable[..., Component], tmp_path: Path
) -> None:
    # The second life tells whether the worker of the first still runs.
    code = (
        "import os, pathlib, subprocess, sys, time\n"
        "worker = pathlib.Path(sys.argv[1], 'worker')\n"
        "if not worker.exists():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    worker.write_text(str(child.pid))\n"
        "    os._exit(1)\n"
        "found = os.path.exists(f'/proc/{worker.read_text()}/cwd')\n"
        "pathlib.Path(sys.argv[1], 'answer').write_text(str(found))\n"
        "time.sleep(60)"
    )
    waiting = (
        "import pathlib, sys, time\n"
        "while not pathlib.Path(sys.argv[1], 'answer').exists(): time.sleep(0.02)\n"
        "time.sleep(0.1)"
    )
    run(replace(component("inference", code), restarts=1), component("trainer", waiting))
    assert (tmp_path / "answer").read_text() == "False"


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
