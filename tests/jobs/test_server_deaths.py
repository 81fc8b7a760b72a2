"""A server that dies and comes back in the middle of a run does not change one bit of it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.commands import (
    RECIPES,
    digests,
    free_port,
    metrics,
    running,
    start,
    succeed,
    wait_for_step,
)

STEPS = 8

# Several requests a step, so that several servers share it.
FLAGS = (
    *("--max-steps", STEPS, "--ckpt", "--orchestrator.prompts-per-step", 64),
    *("--orchestrator.client.prompts-per-request", 8, "--no-orchestrator.evaluation"),
)
WITH_SERVER = ("rl", "@", RECIPES / "rl_reverse.toml", *FLAGS)
WITHOUT_SERVER = (
    *("rl", "--trainer", "@", RECIPES / "reverse/train.toml"),
    *("--orchestrator", "@", RECIPES / "reverse/orch.toml", *FLAGS),
)
INFERENCE = ("inference", "@", RECIPES / "reverse/infer.toml", "--port")


@pytest.fixture(scope="session")
def undisturbed(sft_run: Path, workplace: Path) -> Path:
    """The run whose own server lives to the end."""
    succeed(*WITH_SERVER, "--output-dir", "outputs/undisturbed", cwd=workplace)
    return workplace / "outputs/undisturbed"


def assert_same(run: Path, undisturbed: Path) -> None:
    model = f"weights/step_{STEPS}/model.safetensors"
    assert (run / model).read_bytes() == (undisturbed / model).read_bytes()
    checkpoint = f"checkpoints/step_{STEPS}"
    assert digests(run / checkpoint) == digests(undisturbed / checkpoint)
    assert metrics(run) == metrics(undisturbed)


@contextmanager
def disturbed(
    argv: tuple[object, ...], workplace: Path, run: Path, disturb: Callable[[], None]
) -> Iterator[str]:
    """Start a job, call `disturb` after its third step, and yield its output as one line."""
    process = start((*argv, "--output-dir", run), workplace, {}, subprocess.PIPE)
    wait_for_step(run, 3)
    disturb()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    yield " ".join((out + err).split())


def kill_hard(process: Any) -> None:
    """Kill a server that was started by hand, which leaves its key behind."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_the_job_s_own_server_is_started_again(undisturbed: Path, workplace: Path) -> None:
    run = workplace / "outputs/own_server"

    def kill() -> None:
        marks = ("torchrl_ckpt.cli.component", "inference", str(run))
        (server,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if all(mark in " ".join(process.info["cmdline"] or []) for mark in marks)
        ]
        server.kill()

    with disturbed(WITH_SERVER, workplace, run, kill) as output:
        assert "inference was killed by SIGKILL" in output
        assert "is restarted (1 of at most 3 times)" in output
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_a_server_by_hand_may_be_killed_and_started_again(
    undisturbed: Path, workplace: Path
) -> None:
    run, port = workplace / "outputs/by_hand", free_port()
    url = ("--orchestrator.client.base-url", f"http://127.0.0.1:{port}")
    inference = (*INFERENCE, port)
    with running(*inference, cwd=workplace) as first:
        second = []

        def replace() -> None:
            kill_hard(first)
            second.append(start(inference, workplace, {}, subprocess.DEVNULL))

        with disturbed((*WITHOUT_SERVER, *url), workplace, run, replace) as output:
            assert f"the inference server http://127.0.0.1:{port} is not there" in output
            assert "is back, and verified" in output
        kill_hard(second[0])
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_one_of_two_servers_dies_and_comes_back(undisturbed: Path, workplace: Path) -> None:
    run, ports = workplace / "outputs/pool", (free_port(), free_port())
    urls = ("--orchestrator.client.base-urls", *(f"http://127.0.0.1:{port}" for port in ports))
    with (
        running(*INFERENCE, ports[0], cwd=workplace),
        running(*INFERENCE, ports[1], cwd=workplace) as second,
    ):
        third = []

        def replace() -> None:
            kill_hard(second)
            third.append(start((*INFERENCE, ports[1]), workplace, {}, subprocess.DEVNULL))

        with disturbed((*WITHOUT_SERVER, *urls), workplace, run, replace) as output:
            assert f"the inference server http://127.0.0.1:{ports[1]} is not there" in output
        kill_hard(third[0])
    assert_same(run, undisturbed)
