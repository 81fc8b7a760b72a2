"""The user sees how far a run is, in a terminal or a file, and the terminal is clean afterwards."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from tests.support.waiting import wait_until
from torchrl_ckpt.launcher.display.display import PLAIN_VARIABLE, Display
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.progress import ProgressLog

Environment = dict[str, str]

RUN = """
import sys, time
from pathlib import Path
from torchrl_ckpt.launcher.display.display import Display
from torchrl_ckpt.run.directory import RunDirectory
from torchrl_ckpt.run.metrics import MetricsLog
from torchrl_ckpt.run.progress import ProgressLog

directory = Path(sys.argv[1])
run = RunDirectory(directory, 1)
run.logs.mkdir(parents=True)
metrics = MetricsLog(run.metrics)
trainer, orchestrator = [ProgressLog(run.progress, name) for name in ("trainer", "orchestrator")]
metrics.write("trainer", 1, {"loss": 9.9})

def show(display):
    time.sleep(0.26)
    display.refresh()

last_steps = {"trainer": 20, "orchestrator": 20}
with Display("rl_reverse", run, last_steps=last_steps, start_step=2) as display:
    metrics.write("evaluation", 0, {"reward/mean": 0.738})
    metrics.write("orchestrator", 4, {"reward/mean": 0.7512, "policy_version": 2})
    metrics.write("trainer", 3, {"loss": 0.6123, "lr": 5e-4, "tokens_per_second": 8123.4})
    rollouts = orchestrator.task("rollouts", total=1024)
    waiting = orchestrator.task("waiting for policy 3")
    saving = trainer.task("checkpoint", total=75_500_000, unit="bytes")
    show(display)
    rollouts.update(512)
    show(display)
    trainer.message("checkpoint step_3 [committed]")
    display.message("asked to stop", "warning")
    show(display)
    while not (directory / "go").exists():
        show(display)
    rollouts.end()
    metrics.write("trainer", 20, {"loss": float("nan")})
    display.finish(["training finished: 20 steps", "weights: outputs/weights/step_20"])
print("the prompt")
"""
"""A launcher whose run goes on until the file `go` is there; its argument is a directory."""


class Terminal:
    """`RUN` in a terminal of `columns` columns, as a user sees it."""

    def __init__(self, directory: Path, columns: int, **environment: str) -> None:
        self.screen = pyte.Screen(columns, 24)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self._descriptor, terminal_end = pty.openpty()
        fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN, directory],
            env={**_environment(), "TERM": "xterm-256color", **environment},
            stdin=terminal_end,
            stdout=terminal_end,
            stderr=terminal_end,
        )
        os.close(terminal_end)

    def text(self) -> str:
        """Return what the screen shows after everything written so far."""
        while select.select([self._descriptor], [], [], 0.05)[0]:
            try:
                data = os.read(self._descriptor, 65536)
            except OSError:  # The program has closed the terminal.
                break
            self.written += data
            self._stream.feed(data)
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait(self) -> int:
        while self._process.poll() is None:
            self.text()
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._descriptor)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture(name="open_terminal")
def open_terminal_fixture(tmp_path: Path) -> Iterator[OpenTerminal]:
    """Opens a `Terminal` with a number of columns and environment variables."""
    terminals: list[Terminal] = []

    def open_terminal(columns: int, **environment: str) -> Terminal:
        terminals.append(Terminal(tmp_path, columns, **environment))
        return terminals[-1]

    yield open_terminal
    for terminal in terminals:
        terminal.close()


def _environment() -> Environment:
    """The environment without the variables that affect the display."""
    removed = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", PLAIN_VARIABLE}
    return {name: value for name, value in os.environ.items() if name not in removed}


def _line(screen: str, *words: str) -> str:
    """The only line of the screen that contains all of `words`."""
    (line,) = [line for line in screen.splitlines() if all(word in line for word in words)]
    return line


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_shows_bars_and_is_clean_in_the_end(
    tmp_path: Path, open_terminal: OpenTerminal, environment: Environment
) -> None:
    terminal = open_terminal(columns=80, **environment)
    wait_until(lambda: "asked to stop" in terminal.text() and "512/1024" in terminal.text())
    screen = terminal.text()
    assert "rl_reverse" in screen
    assert "━" in _line(screen, "trainer", "3/20", "loss 0.6123", "lr 5.0e-04", "tokens/s 8123")
    assert "━" in _line(screen, "orchestrator", "4/20", "reward 0.7512", "policy 2")
    assert _line(screen, "evaluation", "step 0", "reward 0.7380")
    assert "━" in _line(screen, "orchestrator", "512/1024", "rollouts")
    assert _line(screen, "orchestrator", "waiting for policy 3")
    assert _line(screen, "trainer", "75.5 MB", "checkpoint")
    assert screen.index("step_3 [committed]") < screen.index("warning: asked to stop")
    assert screen.index("asked to stop") < screen.index("rl_reverse")

    (tmp_path / "go").touch()
    assert terminal.wait() == 0
    lines = terminal.text().splitlines()
    assert len(lines) == 5, lines
    assert "step_3 [committed]" in lines[0]
    assert "asked to stop" in lines[1]
    assert lines[2:] == [
        "training finished: 20 steps",
        "weights: outputs/weights/step_20",
        "the prompt",
    ]
    assert not terminal.screen.cursor.hidden


def test_a_narrow_terminal_keeps_one_line_for_each_bar(
    tmp_path: Path, open_terminal: OpenTerminal
) -> None:
    terminal = open_terminal(columns=50)
    wait_until(lambda: "512/1024" in terminal.text())
    screen = terminal.text()
    assert "━" in _line(screen, "trainer", "3/20", "loss")
    assert "━" in _line(screen, "orchestrator", "4/20")
    (tmp_path / "go").touch()
    assert terminal.wait() == 0
    assert "━" not in terminal.text()


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {PLAIN_VARIABLE: "1"}])
def test_a_terminal_that_cannot_or_must_not_draw_gets_plain_lines(
    tmp_path: Path, open_terminal: OpenTerminal, environment: Environment
) -> None:
    (tmp_path / "go").touch()
    terminal = open_terminal(columns=80, **environment)
    assert terminal.wait() == 0
    assert "trainer       step  3/20  loss 0.6123" in terminal.text()
    assert b"\x1b" not in terminal.written


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_a_file_gets_one_plain_line_for_each_event(
    tmp_path: Path, environment: Environment
) -> None:
    (tmp_path / "go").touch()
    argv = [sys.executable, "-c", RUN, tmp_path]
    output = subprocess.check_output(argv, env={**_environment(), **environment}, text=True)
    assert "\x1b" not in output
    assert re.sub(r"\d\d:\d\d:\d\d", "12:34:56", output).splitlines() == [
        "rl_reverse",
        "evaluation    step  0     reward 0.7380",
        "orchestrator  step  4/20  reward 0.7512  policy 2",
        "trainer       step  3/20  loss 0.6123  lr 5.0e-04  tokens/s 8123",
        "12:34:56 trainer: checkpoint step_3 [committed]",
        "12:34:56 warning: asked to stop",
        "trainer       step 20/20  loss nan",
        "training finished: 20 steps",
        "weights: outputs/weights/step_20",
        "the prompt",
    ]


def test_plain_lines_mention_a_task_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path, 1)
    run.logs.mkdir(parents=True)
    ProgressLog(run.progress, "orchestrator").task("waiting for policy 3")
    began = time.time()
    display = Display("run", run, last_steps={}, plain=True)
    for seconds in (4, 6, 11, 13):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: began + seconds)
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: seconds)
        display.refresh()
    display.finish()
    assert capsys.readouterr().out.splitlines() == [
        "run",
        "orchestrator  waiting for policy 3, 6 s so far",
        "orchestrator  waiting for policy 3, 13 s so far",
    ]


def test_the_run_goes_on_when_the_reader_of_its_output_has_gone(tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    code = RUN + "\n(directory / 'finished').touch()"
    (tmp_path / "go").touch()
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "rl_reverse\n"
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 0
    assert finished.exists()
